"""The comparison with Stripe: what never came is fetched, and what differs is told."""

import secrets
import time
from typing import Any

import pytest
from sqlalchemy import select, update

from backend.billing import orders, payments, reconciling
from backend.billing.models import Order, Payment
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.providers.stripe import PaymentsUnavailable, Stripe
from tests.billing.conftest import MakeOrder
from tests.billing.stripe_events import completed, intent_of
from tests.billing.stripe_server import StripeServer
from tests.billing.test_inbox import books, kept, take

AN_HOUR_AGO = int(time.time()) - 3600


def intent(order: Order, **changes: Any) -> dict[str, Any]:
    return {
        "id": intent_of(order),
        "object": "payment_intent",
        "amount_received": order.amount_cents,
        "created": AN_HOUR_AGO,
        "currency": order.currency,
        "metadata": {"order_id": str(order.public_id)},
        "status": "succeeded",
        **changes,
    }


async def test_what_never_came_is_fetched_page_by_page(
    db: Database, paying: Settings, stripe_server: StripeServer, make_order: MakeOrder
) -> None:
    bought = [await make_order() for _ in range(3)]
    sent = [completed(order, at=AN_HOUR_AGO) for order in bought]
    await take(db, paying, sent[0])
    others = [
        {**completed(bought[0], at=AN_HOUR_AGO - n), "id": f"evt_{secrets.token_hex(8)}", "type": "price.created"}
        for n in range(230)
    ]
    stripe_server.events = [*sent, *others]
    stripe_server.intents = [intent(order) for order in bought]
    stripe = Stripe(paying)
    report = await reconciling.reconcile(db, stripe, paying)
    assert (report.events, report.payments, report.differences) == (233, 3, [])
    assert set(report.missing) == {one["id"] for one in [*sent[1:], *others]}
    for order in bought:
        assert (await books(db, order))["posted"] == 10_000
    pages = [params for _, path, params, _ in stripe_server.requests if path == "/v1/events"]
    assert [("starting_after" in params, params["limit"]) for params in pages] == [
        (False, "100"),
        (True, "100"),
        (True, "100"),
    ]
    assert {value for name, value in pages[0].items() if name.startswith("types[")} >= {"checkout.session.completed"}
    again = await reconciling.reconcile(db, stripe, paying)
    assert (again.missing, again.differences) == ([], [])
    await stripe.close()


async def test_what_differs_is_told(
    db: Database,
    paying: Settings,
    stripe_server: StripeServer,
    make_order: MakeOrder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, other, lost, young = [await make_order() for _ in range(4)]
    await take(db, paying, completed(good), completed(other))
    stripe_server.intents = [
        intent(good),
        intent(other, amount_received=100),
        intent(lost),
        intent(young, created=int(time.time())),  # its event is on its way
        intent(good, id="pi_not_ours", metadata={}),
        intent(good, id="pi_unpaid", status="requires_payment_method"),
    ]
    stripe = Stripe(paying)
    with caplog.at_level("ERROR"):
        report = await reconciling.reconcile(db, stripe, paying)
    await stripe.close()
    assert report.payments == 4
    assert len(report.differences) == 2
    assert any(intent_of(lost) in one and "no payment here" in one for one in report.differences)
    assert any(intent_of(other) in one and "100 eur at Stripe" in one for one in report.differences)
    assert caplog.text.count("differ") == 2


async def test_payments_of_orders_that_ended_are_closed(
    db: Database, paying: Settings, stripe_server: StripeServer, make_order: MakeOrder
) -> None:
    ended, waiting = await make_order(), await make_order()
    async with db.transaction() as session:
        await session.execute(update(Order).where(Order.id == ended.id).values(state=orders.EXPIRED))
    stripe = Stripe(paying)
    await reconciling.reconcile(db, stripe, paying)
    await stripe.close()
    async with db.transaction() as session:
        rows = await session.execute(
            select(Payment.order_id, Payment.state).where(Payment.order_id.in_([ended.id, waiting.id]))
        )
    assert {row[0]: row[1] for row in rows} == {ended.id: payments.EXPIRED, waiting.id: payments.PENDING}


async def test_an_outage_leaves_it_to_the_next_day(
    db: Database, paying: Settings, settings: Settings, stripe_server: StripeServer
) -> None:
    stripe_server.mode = "down"
    stripe = Stripe(paying)
    with pytest.raises(PaymentsUnavailable):
        await reconciling.reconcile(db, stripe, paying)
    assert await reconciling.tick(db, stripe, paying) is None
    assert await reconciling.tick(db, Stripe(settings), settings) is None, "without a key"
    await stripe.close()


async def test_a_customer_that_cannot_be_deleted_is_told(
    paying: Settings, stripe_server: StripeServer, caplog: pytest.LogCaptureFixture
) -> None:
    stripe = Stripe(paying)
    stripe_server.mode = "refuse"  # it is gone already
    await reconciling.drop_customer(stripe, "cus_gone")
    assert "cus_gone" not in caplog.text
    stripe_server.mode = "down"
    await reconciling.drop_customer(stripe, "cus_left")
    assert "cus_left of a deleted account is left at Stripe" in caplog.text
    await stripe.close()


async def test_the_pages_of_events_hold_what_a_webhook_holds(
    db: Database, paying: Settings, stripe_server: StripeServer, make_order: MakeOrder
) -> None:
    sent = completed(await make_order(), at=AN_HOUR_AGO)
    stripe_server.events = [sent]
    stripe = Stripe(paying)
    await reconciling.reconcile(db, stripe, paying)
    await stripe.close()
    row = await kept(db, sent["id"])
    assert row is not None
    assert row.payload == sent
