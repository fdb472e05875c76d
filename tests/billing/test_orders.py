"""Orders move once: paid, expired, failed; late money revives what nobody cancelled."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from backend.billing import orders, pricing
from backend.billing.errors import OrderNotFound
from backend.billing.models import Order
from backend.billing.pricing import Means, Prices
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.kit.errors import DomainError
from backend.kit.owner import Owner
from backend.kit.pagination import Window
from backend.users.models import User
from tests.billing.conftest import make_user


class Cancelled(DomainError):
    code = orders.CANCELLED_CODE
    template = "The order of {what} was cancelled."


@pytest.fixture
async def user(db: Database) -> User:
    return await make_user(db)


@pytest.fixture
def make(db: Database, settings: Settings, user: User) -> Any:
    async def make_one(kind: orders.Kind = orders.LAUNCH, state: orders.State = orders.PENDING_PAYMENT) -> Order:
        async with db.transaction() as session:
            price = pricing.quote(Prices.of(settings), Means(available=1000), settings.free_characters + 20_000)
            params = {"wish": {"content_ids": [1]}}
            return await orders.create(
                session, user_id=user.id, kind=kind, quote=price, params=params, state=state, project_id=None
            )

    return make_one


async def paid(db: Database, order: Order) -> bool:
    async with db.transaction() as session:
        return await orders.mark_paid(session, order)


async def row(db: Database, order: Order) -> Order:
    async with db.transaction() as session:
        return await session.get_one(Order, order.id)


async def test_a_launch_is_due_once_it_is_paid(db: Database, make: Any, settings: Settings) -> None:
    order = await make()
    assert (order.state, order.characters) == ("pending_payment", settings.free_characters + 20_000)
    assert order.characters_bought == order.quote["characters_bought"] == settings.free_characters + 19_000
    assert order.next_step_at - datetime.now(UTC) > timedelta(hours=24)
    answers = await asyncio.gather(*[paid(db, order) for _ in range(20)])
    assert sorted(answers) == [False] * 19 + [True]
    found = await row(db, order)
    assert (found.state, found.next_step_at) == ("paid", found.paid_at)


async def test_a_purchase_is_complete_once_it_is_paid(db: Database, make: Any) -> None:
    order = await make(orders.CREDITS)
    assert order.characters == 0
    assert await paid(db, order)
    found = await row(db, order)
    assert (found.state, found.next_step_at) == ("completed", None)
    assert found.ended_at is not None


@pytest.mark.parametrize(("error", "state"), [(None, "paid"), (Cancelled(what="lamps"), "credited")])
async def test_late_money_starts_what_nobody_cancelled(
    db: Database, make: Any, error: DomainError | None, state: str
) -> None:
    order = await make()
    async with db.transaction() as session:
        assert await orders.expire(session, order, error)
        assert not await orders.expire(session, order)
    expired = await row(db, order)
    assert (expired.state, expired.next_step_at, expired.error_code) == ("expired", None, error and error.code)
    assert await paid(db, order)
    assert (await row(db, order)).state == state


async def test_a_promised_payment_is_waited_for(db: Database, make: Any) -> None:
    order = await make()
    async with db.transaction() as session:
        await orders.await_bank(session, order)
    found = await row(db, order)
    assert found.next_step_at is not None
    assert found.next_step_at - datetime.now(UTC) > timedelta(days=14)
    assert await paid(db, order)
    async with db.transaction() as session:
        await orders.await_bank(session, order)
    assert (await row(db, order)).state == "paid"


async def test_what_has_ended_stays(db: Database, make: Any) -> None:
    order = await make(state=orders.PAID)
    failure = Cancelled(what="lamps")
    async with db.transaction() as session:
        assert await orders.fail(session, order, failure)
        assert not await orders.fail(session, order, failure)
        assert not await orders.end(session, order, orders.COMPLETED)
        assert not await orders.expire(session, order)
        assert not await orders.mark_paid(session, order)
    found = await row(db, order)
    assert (found.state, found.error_message) == ("failed", "The order of lamps was cancelled.")
    assert found.params == {"wish": {"content_ids": [1]}, "error_context": {"what": "lamps"}}


async def test_found_by_their_names_and_only_by_their_owner(db: Database, make: Any, user: User) -> None:
    first, second = await make(), await make(orders.CREDITS)
    await paid(db, second)
    owner, other = Owner(user.id, user.public_id), Owner(user.id + 1, uuid4())
    async with db.transaction() as session:
        found = await orders.find(session, first.public_id)
        assert found is not None
        assert found.id == first.id
        assert await orders.find(session, uuid4()) is None
        assert (await orders.get_by_number(session, owner, first.id)).id == first.id
        with pytest.raises(OrderNotFound):
            await orders.get_by_number(session, other, first.id)
        window = Window(limit=10, offset=0)
        assert [order.id for order in (await orders.page_by_number(session, owner, window)).items] == [
            second.id,
            first.id,
        ]
        page = await orders.page_by_number(session, owner, window, state=orders.COMPLETED, kind=orders.CREDITS)
        assert ([order.id for order in page.items], page.total) == ([second.id], 1)
        assert (await orders.page_by_number(session, other, window)).total == 0
