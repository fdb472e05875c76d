"""Checkouts of every kind of order: where the payer comes back to, until when it can be paid, and crashes."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select, update

from backend.billing import checkout, orders
from backend.billing.errors import CheckoutExpired
from backend.billing.models import Account, Order, Payment
from backend.billing.pricing import Means, Prices, cents, quote
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.projects.models import Project
from backend.providers.stripe import PaymentsNotConfigured, PaymentsUnavailable, Stripe
from tests.billing.conftest import MakeOrder, make_user
from tests.billing.stripe_events import completed
from tests.billing.stripe_server import StripeServer
from tests.billing.test_inbox import books, take


@pytest.fixture
async def stripe(paying: Settings) -> Any:
    made = Stripe(paying)
    yield made
    await made.close()


async def launch_order(db: Database, settings: Settings, kind: orders.Kind) -> tuple[Order, int]:
    user = await make_user(db)
    async with db.transaction() as session:
        project = Project(user_id=user.id, name="Lamps")
        session.add(project)
        await session.flush()
        order = await orders.create(
            session,
            user_id=user.id,
            kind=kind,
            quote=quote(Prices.of(settings.model_copy(update={"free_characters": 0})), Means(), 50_000),
            params={},
            state=orders.PENDING_PAYMENT,
            project_id=project.id,
        )
        return order, project.id


@pytest.mark.parametrize(
    ("kind", "success", "cancelled"),
    [
        (orders.LAUNCH, "/dashboard/projects/{project}?tab=finetune&", "/dashboard/projects/{project}?tab=finetune&"),
        (orders.ONBOARDING, "/dashboard?onboarding_completed=true&", "/dashboard?"),
    ],
)
async def test_a_launch_is_paid_like_a_purchase(
    db: Database,
    paying: Settings,
    stripe: Stripe,
    stripe_server: StripeServer,
    kind: orders.Kind,
    success: str,
    cancelled: str,
) -> None:
    order, project = await launch_order(db, paying, kind)
    opened = await checkout.open_checkout(db, stripe, paying, order.id)
    (sent,) = stripe_server.told("/v1/checkout/sessions")
    base = paying.frontend_url
    assert sent["success_url"].startswith(base + success.format(project=project) + "checkout=success&order=")
    assert (
        sent["cancel_url"] == base + cancelled.format(project=project) + f"checkout=cancelled&order={order.public_id}"
    )
    assert (sent["metadata[payment_type]"], sent["metadata[project_id]"]) == (kind, str(project))
    assert sent["line_items[0][price_data][unit_amount]"] == str(order.amount_cents)
    assert int(sent["expires_at"]) == int(order.created_at.timestamp()) + checkout.PAYABLE_HOURS * 3600
    await take(db, paying, completed(opened))
    found = await books(db, order)
    assert (found["posted"], found["order"]) == (order.characters_bought, "paid")


async def test_a_second_call_asks_stripe_nothing(
    db: Database, paying: Settings, stripe: Stripe, stripe_server: StripeServer, make_order: MakeOrder
) -> None:
    order = await make_order()
    first = await checkout.open_checkout(db, stripe, paying, order.id)
    asked = len(stripe_server.requests)
    second = await checkout.open_checkout(db, stripe, paying, order.id)
    assert (second.checkout_url, second.stripe_session_id) == (first.checkout_url, first.stripe_session_id)
    assert len(stripe_server.requests) == asked


async def test_a_crash_after_the_session_was_made_loses_nothing(
    db: Database, paying: Settings, stripe: Stripe, stripe_server: StripeServer, make_order: MakeOrder
) -> None:
    order = await make_order()
    first = await checkout.open_checkout(db, stripe, paying, order.id)
    async with db.transaction() as session:  # as if it had not been written down
        await session.execute(
            update(Order).where(Order.id == order.id).values(stripe_session_id=None, checkout_url=None)
        )
        await session.execute(update(Payment).where(Payment.order_id == order.id).values(stripe_session_id=None))
        await session.execute(update(Account).where(Account.user_id == order.user_id).values(stripe_customer_id=None))
    again = await checkout.open_checkout(db, stripe, paying, order.id)
    assert again.checkout_url == first.checkout_url
    # And when nobody asks again: the event names the order.
    other = await make_order()
    await take(db, paying, completed(other))
    assert (await books(db, other))["order"] == "completed"


async def test_an_outage_leaves_the_order_waiting(
    db: Database, paying: Settings, stripe: Stripe, stripe_server: StripeServer, make_order: MakeOrder
) -> None:
    order = await make_order()
    stripe_server.mode = "down"
    with pytest.raises(PaymentsUnavailable):
        await checkout.open_checkout(db, stripe, paying, order.id)
    assert (await books(db, order))["order"] == "pending_payment"


async def test_what_can_no_longer_be_paid(
    db: Database, paying: Settings, settings: Settings, stripe: Stripe, make_order: MakeOrder
) -> None:
    old, ended = await make_order(), await make_order()
    before = datetime.now(UTC) - timedelta(hours=checkout.PAYABLE_HOURS - 1, minutes=1)
    async with db.transaction() as session:
        await session.execute(update(Order).where(Order.id == old.id).values(created_at=before))
        await session.execute(update(Order).where(Order.id == ended.id).values(state=orders.EXPIRED))
    for number in (old.id, ended.id, 2**40):
        with pytest.raises(CheckoutExpired):
            await checkout.open_checkout(db, stripe, paying, number)
    with pytest.raises(PaymentsNotConfigured):
        await checkout.open_checkout(db, Stripe(settings), settings, old.id)


@pytest.mark.parametrize("price", ["0.000365", "0.001", "0.6", "0.60", "7", "0.000000000001", "0.0051"])
@pytest.mark.parametrize("minimum", [0, 1, 50, 60])
def test_the_least_that_can_be_bought(price: str, minimum: int) -> None:
    prices = Prices(Decimal(price), 10_000, minimum, 20_000, "eur")
    least = checkout._least(prices)
    assert cents(prices.price_per_character, least) >= minimum
    assert least <= 1 or cents(prices.price_per_character, least - 1) < minimum


async def test_payments_of_an_order_are_one(db: Database, paying: Settings, make_order: MakeOrder) -> None:
    order = await make_order()
    async with db.transaction() as session:
        for _ in range(2):
            await checkout.payments.expect(session, order)
        assert len((await session.scalars(select(Payment).where(Payment.order_id == order.id))).all()) == 1
