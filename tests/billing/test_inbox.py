"""The inbox of Stripe's events: what is kept, what is refused, and that order and repetition change nothing."""

import asyncio
import itertools
import json
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from backend.billing import auditing, inbox, ledger
from backend.billing.models import Order, Payment, StripeEvent
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.main import create_app
from tests.billing.conftest import MakeOrder, make_user
from tests.billing.stripe_events import (
    SECRET,
    URL,
    completed,
    deliver,
    dispute,
    event,
    expired,
    refunded,
    session_of,
    signed,
)


async def kept(db: Database, event_id: str) -> StripeEvent | None:
    async with db.transaction() as session:
        return await session.scalar(select(StripeEvent).where(StripeEvent.event_id == event_id))


async def take(db: Database, settings: Settings, *sent: dict[str, Any]) -> None:
    """Keeps and handles events, one after the other."""
    for one in sent:
        async with db.transaction() as session:
            number = await inbox.keep(session, one)
        if number is not None:
            await inbox.handle(db, settings, number)


async def books(db: Database, order: Order) -> dict[str, Any]:
    async with db.transaction() as session:
        balance = await ledger.balance(session, order.user_id)
        payment = (await session.scalars(select(Payment).where(Payment.order_id == order.id))).one()
        now = await session.get_one(Order, order.id)
        return {
            "posted": balance.posted,
            "held": balance.held,
            "owed": balance.owed,
            "purchased": balance.purchased,
            "payment": payment.state,
            "refunded_cents": payment.refunded_cents,
            "refunded_characters": payment.refunded_characters,
            "dispute": payment.dispute_state,
            "order": now.state,
        }


async def test_an_event_is_kept_once_and_answered(door: httpx.AsyncClient, db: Database, make_order: MakeOrder) -> None:
    order = await make_order()
    sent = completed(order)
    for _ in range(3):
        answer = await deliver(door, sent)
        assert (answer.status_code, answer.json()) == (200, {"status": "success"})
        assert "ratelimit-limit" not in answer.headers
    row = await kept(db, sent["id"])
    assert row is not None
    assert (row.type, row.payload["data"]["object"]["amount_total"]) == (sent["type"], order.amount_cents)
    assert (await books(db, order))["posted"] == 0  # nothing is worked out while Stripe waits


async def test_either_secret_signs(door: httpx.AsyncClient, db: Database) -> None:
    for secret in (SECRET, "whsec_the_next_one"):
        body = json.dumps(event("customer.created", {"id": "cus_1"})).encode()
        answer = await door.post(URL, content=body, headers=signed(body, secret))
        assert answer.status_code == 200, answer.text
        assert await kept(db, json.loads(body)["id"]) is not None


def _headers(body: bytes) -> dict[str, dict[str, str]]:
    good = signed(body)["Stripe-Signature"]
    stamp = good.split(",")[0]
    return {
        "missing": {},
        "empty": {"Stripe-Signature": ""},
        "nonsense": {"Stripe-Signature": "x"},
        "no time": {"Stripe-Signature": good.split(",")[1]},
        "no signature": {"Stripe-Signature": stamp},
        "another scheme": {"Stripe-Signature": good.replace("v1=", "v0=")},
        "wrong secret": signed(body, "whsec_of_somebody_else"),
        "empty secret": signed(body, " "),
        "old": signed(body, at=int(time.time()) - 400),
        "time changed": {"Stripe-Signature": good.replace(stamp, f"t={int(time.time()) + 1}")},
        "cut": {"Stripe-Signature": good[:-1]},
        "letters": {"Stripe-Signature": f"{stamp},v1=\u00e9\u00e9"},
    }


@pytest.mark.parametrize("case", list(_headers(b"{}")))
async def test_a_signature_that_does_not_fit_is_refused(door: httpx.AsyncClient, db: Database, case: str) -> None:
    body = json.dumps(event("customer.created", {"id": "cus_1"})).encode()
    headers = {name: value.encode("latin-1") for name, value in _headers(body)[case].items()}
    answer = await door.post(URL, content=body, headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["error_code"]) == (400, "BAD_SIGNATURE"), answer.text
    assert await kept(db, json.loads(body)["id"]) is None


@pytest.mark.parametrize("change", [(b"365", b"366"), (b"eur", b"usd"), (b"{", b"{ "), (b"payer", b"\xff\xfe")])
async def test_a_body_that_was_changed_is_refused(
    door: httpx.AsyncClient, db: Database, make_order: MakeOrder, change: tuple[bytes, bytes]
) -> None:
    sent = completed(await make_order())
    body = json.dumps(sent).encode()
    assert change[0] in body
    answer = await door.post(URL, content=body.replace(*change), headers=signed(body))
    assert (answer.status_code, answer.json()["error_code"]) == (400, "BAD_SIGNATURE")
    assert await kept(db, sent["id"]) is None


async def test_without_a_secret_nothing_is_taken(anonymous: httpx.AsyncClient) -> None:
    answer = await deliver(anonymous, event("customer.created", {"id": "cus_1"}))
    assert (answer.status_code, answer.json()["error_code"]) == (503, "PAYMENTS_NOT_CONFIGURED")


async def test_what_cannot_be_kept_is_sent_again(paying: Settings) -> None:
    application = create_app(paying.model_copy(update={"database_url": "postgresql+asyncpg://x:y@127.0.0.1:9/none"}))
    async with application.router.lifespan_context(application):
        transport = httpx.ASGITransport(app=application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            answer = await deliver(client, event("customer.created", {"id": "cus_1"}))
    assert answer.status_code == 503


async def test_what_no_table_holds_is_left_out(door: httpx.AsyncClient, db: Database) -> None:
    sent = event("customer.created", {"id": "cus_1", "name": "Je\0anne", "email": "\u20ac"})
    assert (await deliver(door, sent)).status_code == 200
    row = await kept(db, sent["id"])
    assert row is not None
    assert row.payload["data"]["object"] == {"id": "cus_1", "name": "Jeanne", "email": "\u20ac"}


@pytest.mark.parametrize(
    "sent", [[], "x", {"id": "evt_1"}, {"id": "evt_1", "type": "v2.core", "created": "2026-01-01"}]
)
async def test_a_signed_body_that_is_no_event_is_answered(door: httpx.AsyncClient, sent: Any) -> None:
    assert (await deliver(door, sent)).status_code == 200


async def test_a_body_beyond_the_limit_is_not_read(door: httpx.AsyncClient) -> None:
    answer = await deliver(door, event("customer.created", {"id": "cus_1", "name": "x" * 2_000_000}))
    assert answer.status_code == 413


@pytest.mark.slow
async def test_every_order_of_events_leaves_the_same_books(
    db: Database, settings: Settings, make_order: MakeOrder
) -> None:
    free = asyncio.Semaphore(4)

    def events(order: Order, now: int) -> list[dict[str, Any]]:
        again = completed(order, at=now)
        return [
            completed(order, at=now, event_id=f"evt_{order.public_id.hex}"),
            refunded(order, 100, at=now + 5),
            dispute("charge.dispute.created", order, status="needs_response", at=now + 9),
            expired(order, at=now + 2),
            again,  # the same payment under another event
        ]

    before = (await auditing.verify(db)).users  # those in which other tests planted faults

    async def one(places: tuple[int, ...]) -> dict[str, Any]:
        async with free:
            order = await make_order()
            sent = events(order, int(time.time()))
            await take(db, settings, *[sent[place] for place in places], *sent)
            return await books(db, order)

    found = await asyncio.gather(*[one(places) for places in itertools.permutations(range(5))])
    taken = -(-10_000 * 100 // 365)
    assert all(
        one
        == {
            "posted": 10_000 - taken,
            "held": 10_000 - taken,
            "owed": 0,
            "purchased": 10_000 - taken,
            "payment": "paid",
            "refunded_cents": 100,
            "refunded_characters": taken,
            "dispute": "needs_response",
            "order": "completed",
        }
        for one in found
    ), [one for one in found if one != found[0]][:3]
    assert len(found) == 120
    assert (await auditing.verify(db)).users == before


async def test_all_at_once_as_well(db: Database, settings: Settings, make_order: MakeOrder) -> None:
    order = await make_order()
    now = int(time.time())
    sent = [
        completed(order, at=now),
        completed(order, at=now),
        refunded(order, 365, at=now + 1),
        expired(order, at=now),
        dispute("charge.dispute.created", order, status="needs_response", at=now + 2),
    ]
    numbers = []
    for one in sent:
        async with db.transaction() as session:
            numbers.append(await inbox.keep(session, one))
    await asyncio.gather(*[inbox.handle(db, settings, number) for number in numbers * 4 if number is not None])
    found = await books(db, order)
    assert (found["posted"], found["held"], found["refunded_characters"]) == (0, 0, 10_000)
    assert (found["payment"], found["order"]) == ("paid", "completed")


async def test_a_refund_waits_for_its_purchase(db: Database, settings: Settings, make_order: MakeOrder) -> None:
    order = await make_order()
    early = refunded(order, 365)
    await take(db, settings, early)
    row = await kept(db, early["id"])
    assert row is not None
    assert (row.state, row.waits_for) == ("parked", early["data"]["object"]["payment_intent"])
    await take(db, settings, completed(order))
    row = await kept(db, early["id"])
    assert row is not None
    assert (row.state, row.waits_for) == ("done", None)
    assert (await books(db, order))["posted"] == 0


async def test_a_sweep_finds_what_no_message_reached(db: Database, settings: Settings, make_order: MakeOrder) -> None:
    order = await make_order()
    sent = completed(order)
    async with db.transaction() as session:
        await inbox.keep(session, sent)
    await inbox.handle_due(db, settings)
    assert (await books(db, order))["posted"] == 0, "its message may still come"
    async with db.transaction() as session:
        due = update(StripeEvent).where(StripeEvent.event_id == sent["id"])
        await session.execute(due.values(next_attempt_at=datetime.now(UTC) - timedelta(seconds=1)))
    await inbox.handle_due(db, settings)
    assert (await books(db, order))["posted"] == 10_000


async def test_two_ticks_are_one(db: Database, settings: Settings) -> None:
    async with db.transaction() as session:
        claimed = [await inbox.claim_tick(session, f"test.{secrets.token_hex(4)}", 10.0) for _ in range(1)]
    assert claimed == [True]
    await asyncio.gather(*[inbox.sweep(db, settings) for _ in range(4)])


async def test_what_fails_is_tried_again_then_laid_aside_and_replayed(
    db: Database, settings: Settings, make_order: MakeOrder
) -> None:
    order = await make_order()
    sent = completed(order)
    broken = json.loads(json.dumps(sent))
    del broken["data"]["object"]["id"]  # a mistake of ours, for all that the inbox knows
    async with db.transaction() as session:
        number = await inbox.keep(session, broken)
    assert number is not None
    for attempt in range(1, inbox.MAX_ATTEMPTS + 1):
        await inbox.handle(db, settings, number)
        row = await kept(db, sent["id"])
        assert row is not None
        assert (row.attempts, row.error) == (attempt, "KeyError: 'id'")
        if attempt < inbox.MAX_ATTEMPTS:
            assert row.state == "pending"
            assert row.next_attempt_at is not None
            pause = (row.next_attempt_at - datetime.now(UTC)).total_seconds()
            assert pause == pytest.approx(min(5 * 2 ** (attempt - 1), 3600), abs=5)
    assert row.state == "dead"
    async with db.transaction() as session:
        assert [found.event_id for found in await inbox.list_events(session, ["dead"], 1000)].count(sent["id"]) == 1
        await session.execute(update(StripeEvent).where(StripeEvent.id == number).values(payload=sent))
        assert await inbox.replay(session, sent["id"]) == [number]
    await inbox.handle(db, settings, number)
    assert (await books(db, order))["posted"] == 10_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"amount_total": 364}, "was paid with 364 eur"),
        ({"amount_total": 36_500}, "was paid with 36500 eur"),
        ({"currency": "usd"}, "was paid with 365 usd"),
        ({"payment_intent": None}, "without a payment intent"),
        ({"payment_status": "no_payment_required", "amount_total": 0}, "was paid with 0 eur"),
    ],
)
async def test_what_does_not_fit_the_order_is_never_booked(
    db: Database, settings: Settings, make_order: MakeOrder, change: dict[str, Any], words: str
) -> None:
    order = await make_order()
    sent = event("checkout.session.completed", session_of(order, **change))
    await take(db, settings, sent)
    row = await kept(db, sent["id"])
    assert row is not None
    assert row.state == "dead"
    assert row.error is not None
    assert words in row.error
    found = await books(db, order)
    assert (found["posted"], found["payment"], found["order"]) == (0, "pending", "pending_payment")
    # The true one still counts.
    await take(db, settings, completed(order))
    assert (await books(db, order))["posted"] == 10_000


async def test_a_second_payment_of_one_order_is_for_a_person_to_see(
    db: Database, settings: Settings, make_order: MakeOrder
) -> None:
    order = await make_order()
    second = event("checkout.session.completed", session_of(order, payment_intent="pi_another"))
    await take(db, settings, completed(order), second)
    row = await kept(db, second["id"])
    assert row is not None
    assert row.state == "dead"
    assert (await books(db, order))["posted"] == 10_000


async def test_what_is_not_ours_is_ignored(db: Database, settings: Settings) -> None:
    user = await make_user(db)
    strangers = [
        event(
            "checkout.session.completed", {"id": "cs_x", "mode": "payment", "metadata": {}, "payment_intent": "pi_x"}
        ),
        event("checkout.session.expired", {"id": "cs_x", "metadata": {"order_id": "17"}}),
        event(
            "customer.subscription.updated", {"id": "sub_x", "customer": "cus_x", "metadata": {}, "status": "active"}
        ),
        event("invoice.paid", {"id": "in_x", "customer": "cus_x", "parent": None, "amount_paid": 5, "currency": "eur"}),
        event("charge.refunded", {"id": "ch_x", "payment_intent": None, "amount_refunded": 5}),
        event("price.created", {"id": "price_x"}),
    ]
    await take(db, settings, *strangers)
    for sent in strangers:
        row = await kept(db, sent["id"])
        assert row is not None
        assert row.state == "ignored", (sent["type"], row.error)
    async with db.transaction() as session:
        assert await session.scalar(select(func.count()).where(Payment.user_id == user.id)) == 0


async def test_what_fails_is_not_in_the_way_of_the_others(
    db: Database, settings: Settings, make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are: more than one batch of them, all older."""
    monkeypatch.setattr(inbox, "_BATCH", 2)
    order = await make_order()
    # Without its object, an event fails each time.
    broken = [event("charge.refunded", {"payment_intent": "pi_x", "metadata": []}, at=number) for number in range(1, 6)]
    async with db.transaction() as session:
        numbers = [await inbox.keep(session, sent) for sent in [*broken, completed(order)]]
    await inbox.handle_due(db, settings, at_once=True)
    assert (await books(db, order))["order"] == "completed"
    async with db.transaction() as session:
        await session.execute(
            update(StripeEvent).where(StripeEvent.id.in_(numbers), StripeEvent.state != "done").values(state="ignored")
        )
