"""What Stripe told about a person goes with the account, however the event was closed."""

import json
from typing import Any

import pytest
from sqlalchemy import delete, select

from backend.billing import inbox, reconciling
from backend.billing.models import StripeEvent
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.users.models import User
from tests.billing.conftest import MakeOrder
from tests.billing.stripe_events import completed, event, expired, session_of
from tests.billing.test_inbox import kept, take

CANARY = "jeanne.canary@example.com"


def naming(sent: dict[str, Any]) -> dict[str, Any]:
    sent["data"]["object"]["customer_details"] = {"email": CANARY}
    return sent


async def test_what_is_nothing_of_ours_is_not_kept(db: Database, settings: Settings) -> None:
    """Also of a type that the endpoint was never to be told."""
    sent = event("customer.created", {"id": "cus_x", "object": "customer", "email": CANARY})
    await take(db, settings, sent)
    row = await kept(db, sent["id"])
    assert row is not None
    assert (row.state, row.payload) == ("ignored", {})


@pytest.mark.parametrize("how", ["promised", "expired", "dead"])
async def test_a_deleted_account_leaves_no_word(
    db: Database, settings: Settings, make_order: MakeOrder, how: str
) -> None:
    order = await make_order()
    sent = {
        "promised": lambda: event("checkout.session.completed", session_of(order, payment_status="unpaid")),
        "expired": lambda: expired(order),
        # An amount that was not ordered: nothing is booked, and the event is laid aside.
        "dead": lambda: event("checkout.session.completed", session_of(order, amount_total=1)),
    }[how]()
    await take(db, settings, naming(sent))
    row = await kept(db, sent["id"])
    assert row is not None
    assert row.state == ("dead" if how == "dead" else "done")
    async with db.transaction() as session:
        await reconciling.forget_user(session, order.user_id)
    row = await kept(db, sent["id"])
    assert row is not None
    assert row.payload == {}


@pytest.mark.parametrize("how", ["promised", "expired"])
async def test_what_comes_after_the_deletion_is_emptied(
    db: Database, settings: Settings, make_order: MakeOrder, how: str
) -> None:
    order = await make_order()
    promised = event("checkout.session.completed", session_of(order, payment_status="unpaid"))
    sent = naming(promised if how == "promised" else expired(order))
    async with db.transaction() as session:
        await reconciling.forget_user(session, order.user_id)
        await session.execute(delete(User).where(User.id == order.user_id))
    await take(db, settings, sent)
    row = await kept(db, sent["id"])
    assert row is not None
    assert CANARY not in json.dumps(row.payload)


async def test_an_event_that_waits_to_be_handled_keeps_what_it_says(
    db: Database, settings: Settings, make_order: MakeOrder
) -> None:
    """Money that came just before the deletion must still be seen."""
    order = await make_order()
    sent = naming(completed(order))
    async with db.transaction() as session:
        assert await inbox.keep(session, sent) is not None
        await reconciling.forget_user(session, order.user_id)
    async with db.transaction() as session:
        row = (await session.scalars(select(StripeEvent).where(StripeEvent.event_id == sent["id"]))).one()
        assert row.payload["data"]["object"]["customer_details"]["email"] == CANARY
        row.state = "ignored"
