"""Plans follow Stripe's events in any order, and what they allow follows the plan."""

import itertools
import json
import secrets
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, update

from backend.billing import ledger, payments
from backend.billing.models import Account, Payment
from backend.kit.config import Settings, get_settings
from backend.kit.db import Database
from backend.users import plans
from backend.users.models import Subscription, User
from tests.billing.conftest import make_user
from tests.billing.stripe_events import event, invoice, subscription
from tests.billing.test_inbox import kept, take
from tests.conftest import Tenant

T = 1_800_000_000


@pytest.fixture
async def user(db: Database) -> User:
    return await make_user(db)


async def plan_of(db: Database, user: User) -> Subscription | None:
    async with db.transaction() as session:
        return await session.scalar(select(Subscription).where(Subscription.user_id == user.id))


async def test_a_subscription_becomes_the_plan(db: Database, paying: Settings, user: User) -> None:
    name = f"sub_{user.id}"
    await take(db, paying, subscription("created", user_id=user.id, id=name, customer="cus_7", at=T))
    row = await plan_of(db, user)
    assert row is not None
    assert (row.plan, row.status, row.stripe_subscription_id, row.stripe_customer_id) == (
        "Pro",
        "active",
        name,
        "cus_7",
    )
    assert row.current_period_start == datetime.fromtimestamp(1_800_000_000, UTC)
    assert row.current_period_end == datetime.fromtimestamp(1_802_592_000, UTC)
    assert row.cancel_at_period_end is False
    ending = subscription("updated", user_id=None, id=name, cancel_at_period_end=True, at=T + 5)
    await take(db, paying, ending)  # found by its own id, without our metadata
    row = await plan_of(db, user)
    assert row is not None
    assert (row.cancel_at_period_end, row.status) == (True, "active")


async def test_events_in_any_order_leave_the_same_plan(db: Database, paying: Settings) -> None:
    for places in itertools.permutations(range(4)):
        user = await make_user(db)
        name = f"sub_{secrets.token_hex(6)}"
        sent = [
            subscription("created", user_id=user.id, id=name, status="incomplete", at=T),
            subscription("updated", user_id=user.id, id=name, status="active", at=T),
            subscription("updated", user_id=user.id, id=name, status="past_due", at=T + 50),
            subscription("deleted", user_id=user.id, id=name, status="canceled", at=T + 90),
        ]
        await take(db, paying, *[sent[place] for place in places], *sent)
        row = await plan_of(db, user)
        assert row is not None
        assert (row.status, row.plan) == ("canceled", "Pro"), places


async def test_a_creation_does_not_undo_what_came_in_its_second(db: Database, paying: Settings, user: User) -> None:
    name = f"sub_{user.id}"
    await take(
        db,
        paying,
        subscription("updated", user_id=user.id, id=name, status="active", at=T),
        subscription("created", user_id=user.id, id=name, status="incomplete", at=T),
    )
    row = await plan_of(db, user)
    assert row is not None
    assert row.status == "active"


async def test_a_price_that_no_plan_has_changes_no_plan(
    db: Database, paying: Settings, user: User, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"sub_{user.id}"
    await take(db, paying, subscription("created", user_id=user.id, id=name, at=T))
    with caplog.at_level("ERROR"):
        await take(db, paying, subscription("updated", user_id=user.id, id=name, price="price_secret", at=T + 1))
    row = await plan_of(db, user)
    assert row is not None
    assert row.plan == "Pro"
    assert "price_secret belongs to no plan" in caplog.text
    stranger = await make_user(db)
    await take(db, paying, subscription("created", user_id=stranger.id, id=f"sub_{stranger.id}", price="price_secret"))
    row = await plan_of(db, stranger)
    assert row is not None
    assert row.plan == "Free"


async def test_an_old_subscription_that_ends_does_not_end_the_new_one(
    db: Database, paying: Settings, user: User
) -> None:
    old, new = f"sub_old_{user.id}", f"sub_new_{user.id}"
    await take(
        db,
        paying,
        subscription("created", user_id=user.id, id=old, at=T),
        subscription("created", user_id=user.id, id=new, at=T + 10),
        subscription("deleted", user_id=user.id, id=old, status="canceled", at=T + 20),
    )
    row = await plan_of(db, user)
    assert row is not None
    assert (row.stripe_subscription_id, row.status) == (new, "active")
    # And one that was ended gives way to another, whenever its event comes.
    third = await make_user(db)
    a, b = f"sub_a_{third.id}", f"sub_b_{third.id}"
    await take(
        db,
        paying,
        subscription("deleted", user_id=third.id, id=a, status="canceled", at=T + 20),
        subscription("created", user_id=third.id, id=b, at=T + 10),
    )
    row = await plan_of(db, third)
    assert row is not None
    assert (row.stripe_subscription_id, row.status) == (b, "active")


async def test_the_customer_tells_whose_it_is(db: Database, paying: Settings, user: User) -> None:
    customer = f"cus_{secrets.token_hex(6)}"
    async with db.transaction() as session:
        await ledger.lock(session, user.id)
        await session.execute(update(Account).where(Account.user_id == user.id).values(stripe_customer_id=customer))
    await take(db, paying, subscription("created", user_id=None, id=f"sub_{user.id}", customer=customer))
    assert await plan_of(db, user) is not None


async def test_the_plan_decides_what_is_allowed(
    tenant: Tenant, db: Database, paying: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = {"Free": {"max_projects": 1}, "Pro": {"max_projects": 2, "price_id": "price_pro"}}
    monkeypatch.setattr(get_settings(), "plans", terms)
    mine = paying.model_copy(update={"plans": terms})
    user = tenant.login["user"]["id"]
    name = f"sub_{user}"
    assert (await tenant.client.post("/projects", json={"name": "One"})).status_code == 201
    refused = await tenant.client.post("/projects", json={"name": "Two"})
    assert (refused.status_code, refused.json()["error_code"]) == (403, "PLAN_LIMIT_REACHED")
    await take(db, mine, subscription("created", user_id=user, id=name, at=T))
    assert (await tenant.client.post("/projects", json={"name": "Two"})).status_code == 201
    await take(db, mine, subscription("updated", user_id=user, id=name, status="past_due", at=T + 1))
    async with db.transaction() as session:
        assert (await plans.limits_of(session, user)).plan == "Pro", "a late payment stops nobody"
    await take(db, mine, subscription("deleted", user_id=user, id=name, status="canceled", at=T + 2))
    assert (await tenant.client.post("/projects", json={"name": "Three"})).status_code == 403
    shown = (await tenant.client.get("/api/users/me/subscription")).json()
    assert (shown["status"], shown["max_projects"]) == ("canceled", 1)


async def payment_of(db: Database, invoice_id: str) -> Payment | None:
    async with db.transaction() as session:
        return await session.scalar(select(Payment).where(Payment.stripe_invoice_id == invoice_id))


async def test_an_invoice_is_a_payment_once(db: Database, paying: Settings, user: User) -> None:
    name, number = f"sub_{user.id}", f"in_{secrets.token_hex(6)}"
    failed = invoice("payment_failed", subscription_id=name, user_id=user.id, id=number)
    paid = invoice("paid", subscription_id=name, user_id=user.id, id=number)
    for order in ([failed, paid, json.loads(json.dumps(paid))], [paid, failed]):
        for sent in order:
            sent["id"] = f"evt_{secrets.token_hex(8)}"
        await take(db, paying, *order)
        row = await payment_of(db, number)
        assert row is not None
        assert (row.user_id, row.kind, row.state, row.amount_cents) == (user.id, "subscription", "paid", 2000)
    async with db.transaction() as session:
        assert (await ledger.balance(session, user.id)).posted == 0, "a plan buys no characters"
    trial = f"in_{secrets.token_hex(6)}"
    await take(db, paying, invoice("paid", subscription_id=name, user_id=user.id, id=trial, cents=0))
    assert await payment_of(db, trial) is None


def _refund_of(intent: str, cents: int) -> dict[str, Any]:
    charge = {"id": "ch_1", "object": "charge", "amount_refunded": cents, "payment_intent": intent, "metadata": {}}
    return event("charge.refunded", charge)


async def test_a_refund_of_an_invoice_finds_it_in_any_order(db: Database, paying: Settings) -> None:
    for places in itertools.permutations(range(3)):
        user = await make_user(db)
        number, intent = f"in_{secrets.token_hex(6)}", f"pi_{secrets.token_hex(6)}"
        tie = {
            "id": f"inpay_{secrets.token_hex(6)}",
            "object": "invoice_payment",
            "amount_paid": 2000,
            "currency": "eur",
            "invoice": number,
            "payment": {"type": "payment_intent", "payment_intent": intent},
            "status": "paid",
        }
        sent = [
            invoice("paid", subscription_id=f"sub_{user.id}", user_id=user.id, id=number),
            event("invoice_payment.paid", tie),
            _refund_of(intent, 500),
        ]
        await take(db, paying, *[sent[place] for place in places])
        row = await payment_of(db, number)
        assert row is not None
        assert (row.stripe_payment_intent, row.refunded_cents) == (intent, 500), places
        assert row.state == payments.PAID


async def test_an_event_of_a_deleted_account_is_shouted(
    db: Database, paying: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = 2**40
    sent = subscription("updated", user_id=nobody, id=f"sub_{secrets.token_hex(6)}")
    with caplog.at_level("ERROR"):
        await take(db, paying, sent)
    assert "end it at Stripe" in caplog.text
    row = await kept(db, sent["id"])
    assert row is not None
    assert (row.state, row.payload) == ("done", {})
