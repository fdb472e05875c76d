"""What payments, refunds and disputes do to characters: the table of states, by the event and by the sum."""

import itertools
import secrets
import time
from typing import Any

import pytest
from sqlalchemy import delete, func, select

from backend.billing import disputes, ledger, payments
from backend.billing.disputes import Fact, Returned, returned
from backend.billing.errors import NotRefundable, PaymentNotFound
from backend.billing.models import LedgerEntry, Order, Payment
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.providers.stripe import Stripe
from backend.users.models import User
from tests.billing.conftest import MakeOrder
from tests.billing.stripe_events import completed, dispute, event, intent_of, refund, refunded, session_of
from tests.billing.stripe_server import StripeServer
from tests.billing.test_inbox import books, kept, take

T = 1_800_000_000


async def use(db: Database, order: Order, characters: int) -> None:
    """Has some of the characters worked with."""
    async with db.transaction() as session:
        held = await ledger.hold(
            session, user_id=order.user_id, characters=characters, reference=secrets.token_hex(8), purpose="generation"
        )
        assert await ledger.settle(session, held.id, characters)


async def entries(db: Database, order: Order) -> dict[str, int]:
    async with db.transaction() as session:
        rows = await session.execute(
            select(LedgerEntry.kind, func.sum(LedgerEntry.characters))
            .where(LedgerEntry.user_id == order.user_id)
            .group_by(LedgerEntry.kind)
        )
        return {kind: int(characters) for kind, characters in rows}


async def test_a_purchase_says_what_it_was(db: Database, settings: Settings, make_order: MakeOrder) -> None:
    order = await make_order()
    await take(db, settings, completed(order))
    async with db.transaction() as session:
        payment = (await session.scalars(select(Payment).where(Payment.order_id == order.id))).one()
        entry = (await session.scalars(select(LedgerEntry).where(LedgerEntry.user_id == order.user_id))).one()
    assert (entry.kind, entry.characters, entry.reference) == ("purchase", 10_000, f"payment:{payment.public_id}")
    assert entry.params == {
        "payment_id": payment.id,
        "order": str(order.public_id),
        "amount_cents": 365,
        "currency": "eur",
        "price_per_character": "0.000365",
    }
    assert (payment.state, payment.stripe_payment_intent) == ("paid", intent_of(order))
    assert payment.paid_at is not None


async def test_a_payment_that_takes_days(db: Database, settings: Settings, make_order: MakeOrder) -> None:
    order, other = await make_order(), await make_order()
    for one in (order, other):
        unpaid = event("checkout.session.completed", session_of(one, payment_status="unpaid"))
        await take(db, settings, unpaid)
        assert (await books(db, one))["order"] == "pending_payment"
    await take(db, settings, event("checkout.session.async_payment_succeeded", session_of(order)))
    assert ((await books(db, order))["posted"], (await books(db, order))["order"]) == (10_000, "completed")
    failed = event("checkout.session.async_payment_failed", session_of(other, payment_status="unpaid"))
    await take(db, settings, failed)
    found = await books(db, other)
    assert (found["posted"], found["order"], found["payment"]) == (0, "expired", "failed")


async def test_a_refund_takes_the_same_part_of_the_characters(
    db: Database, settings: Settings, make_order: MakeOrder
) -> None:
    order = await make_order()
    await take(db, settings, completed(order), refunded(order, 1, at=T))
    assert (await books(db, order))["refunded_characters"] == 28  # 27.4, rounded up
    await take(db, settings, refunded(order, 182, at=T + 1))
    assert (await books(db, order))["refunded_characters"] == 4987
    await take(db, settings, refunded(order, 100, at=T))  # late, and older
    assert (await books(db, order))["refunded_characters"] == 4987
    await take(db, settings, refunded(order, 365, at=T + 2))
    found = await books(db, order)
    assert (found["refunded_cents"], found["refunded_characters"], found["posted"]) == (365, 10_000, 0)


async def test_what_was_used_before_its_refund_is_owed_and_paid_back_first(
    db: Database, settings: Settings, make_order: MakeOrder
) -> None:
    order = await make_order()
    await take(db, settings, completed(order))
    await use(db, order, 9_000)
    await take(db, settings, refunded(order, 365))
    found = await books(db, order)
    assert (found["posted"], found["owed"]) == (0, 9_000)
    async with db.transaction() as session:
        user = await session.get_one(User, order.user_id)
    again = await make_order(20_000, user=user)
    await take(db, settings, completed(again))
    found = await books(db, again)
    assert (found["posted"], found["owed"]) == (11_000, 0)


async def test_a_refund_that_fails_gives_the_characters_again(
    db: Database, settings: Settings, make_order: MakeOrder
) -> None:
    for order_of_events in itertools.permutations(range(4)):
        order = await make_order()
        sent = [
            refunded(order, 100, at=T),
            refund("refund.updated", order, 100, "pending", refund_id="re_1", made_at=T, at=T + 1),
            refund("refund.updated", order, 100, "failed", refund_id="re_1", made_at=T, at=T + 9),
            refund("refund.failed", order, 100, "failed", refund_id="re_1", made_at=T, at=T + 9),
        ]
        await take(db, settings, completed(order), *[sent[place] for place in order_of_events])
        found = await books(db, order)
        assert (found["refunded_cents"], found["refunded_characters"], found["posted"]) == (0, 0, 10_000)
        assert found["purchased"] == 10_000
    # Refunded anew: Stripe's count starts again where it was.
    await take(db, settings, refunded(order, 50, at=T + 20))
    assert (await books(db, order))["refunded_cents"] == 50


async def test_a_dispute_freezes_what_is_there(db: Database, settings: Settings, make_order: MakeOrder) -> None:
    order = await make_order()
    await take(db, settings, completed(order))
    await use(db, order, 4_000)
    await take(db, settings, dispute("charge.dispute.created", order, status="needs_response", at=T))
    found = await books(db, order)
    assert (found["posted"], found["held"], found["dispute"]) == (6_000, 6_000, "needs_response")
    await take(db, settings, dispute("charge.dispute.closed", order, status="won", at=T + 9))
    found = await books(db, order)
    assert (found["posted"], found["held"], found["dispute"]) == (6_000, 0, "won")
    assert await entries(db, order) == {"purchase": 10_000, "usage": -4_000}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([("created", "needs_response")], {"posted": 10_000, "held": 10_000, "refunded_characters": 0}),
        ([("created", "warning_needs_response")], {"posted": 10_000, "held": 10_000, "refunded_characters": 0}),
        ([("funds_withdrawn", "needs_response")], {"posted": 0, "held": 0, "refunded_characters": 10_000}),
        ([("closed", "lost")], {"posted": 0, "held": 0, "refunded_characters": 10_000}),
        ([("closed", "won")], {"posted": 10_000, "held": 0, "refunded_characters": 0}),
        ([("closed", "warning_closed")], {"posted": 10_000, "held": 0, "refunded_characters": 0}),
        (
            [("funds_withdrawn", "needs_response"), ("funds_reinstated", "won")],
            {"posted": 10_000, "held": 0, "refunded_characters": 0, "purchased": 10_000},
        ),
        (
            [("funds_withdrawn", "needs_response"), ("closed", "lost")],
            {"posted": 0, "held": 0, "refunded_characters": 10_000},
        ),
    ],
)
async def test_the_table_of_disputes(
    db: Database,
    settings: Settings,
    make_order: MakeOrder,
    events: list[tuple[str, str]],
    expected: dict[str, Any],
) -> None:
    for places in itertools.permutations(range(len(events) + 1)):
        order = await make_order()
        sent = [
            dispute(f"charge.dispute.{name}", order, status=status, at=T + 10 * place)
            for place, (name, status) in enumerate(events)
        ]
        sent.append(dispute("charge.dispute.created", order, status=events[0][1], at=T - 10))
        await take(db, settings, completed(order), *[sent[place] for place in places])
        found = await books(db, order)
        assert {name: found[name] for name in expected} == expected, places


async def test_a_refund_of_a_disputed_payment_frees_it_first(
    db: Database, settings: Settings, make_order: MakeOrder
) -> None:
    order = await make_order()
    await take(
        db,
        settings,
        completed(order),
        dispute("charge.dispute.created", order, status="warning_needs_response", at=T),
        refunded(order, 365, at=T + 5),
    )
    found = await books(db, order)
    assert (found["posted"], found["held"], found["owed"], found["refunded_characters"]) == (0, 0, 0, 10_000)


def _facts() -> list[Fact]:
    def about(kind: str, at: int, **found: Any) -> Fact:
        return Fact(kind, at, found)

    return [
        about("charge.refunded", T, amount_refunded=100),
        about("charge.refunded", T + 5, amount_refunded=150),
        about("refund.failed", T + 8, object="refund", id="re_2", amount=50, status="failed", created=T + 5),
        about("refund.updated", T + 8, object="refund", id="re_2", amount=50, status="failed", created=T + 5),
        about("charge.dispute.created", T + 2, id="du_1", amount=80, status="needs_response"),
        about("charge.dispute.funds_withdrawn", T + 2, id="du_1", amount=80, status="needs_response"),
        about("charge.dispute.created", T + 3, id="du_2", amount=40, status="under_review"),
    ]


def test_the_sum_of_facts_has_no_order() -> None:
    found = {returned(places) for places in itertools.permutations(_facts())}
    assert found == {
        Returned(refunded_cents=100, lost_cents=80, open_cents=40, dispute_id="du_2", dispute_state="under_review")
    }


def test_repeated_facts_count_once() -> None:
    assert returned(_facts() * 3) == returned(_facts())
    assert returned([]) == Returned()


async def test_what_goes_back_is_never_more_than_what_came(
    db: Database, settings: Settings, make_order: MakeOrder
) -> None:
    order = await make_order()
    await take(
        db,
        settings,
        completed(order),
        refunded(order, 300, at=T),
        dispute("charge.dispute.closed", order, status="lost", cents=365, at=T + 1),
        dispute("charge.dispute.created", order, status="needs_response", cents=10_000, at=T),
    )
    found = await books(db, order)
    assert (found["posted"], found["held"], found["refunded_characters"]) == (0, 0, 10_000)


async def test_money_for_a_deleted_account_is_recorded_and_shouted(
    db: Database, settings: Settings, make_order: MakeOrder, caplog: pytest.LogCaptureFixture
) -> None:
    order = await make_order()
    async with db.transaction() as session:
        await session.execute(delete(User).where(User.id == order.user_id))
    sent, back = completed(order), refunded(order, 365)
    with caplog.at_level("ERROR"):
        await take(db, settings, sent, completed(order), back)
    async with db.transaction() as session:
        mine = select(Payment).where(Payment.user_id == order.user_id, Payment.state == "paid")
        payment = (await session.scalars(mine)).one()
        assert await session.scalar(select(Order.id).where(Order.id == order.id)) is None
    assert (payment.state, payment.amount_cents, payment.refunded_cents) == ("paid", 365, 365)
    assert await entries(db, order) == {}
    assert caplog.text.count("give it back") == 1
    for one in (sent, back):
        row = await kept(db, one["id"])
        assert row is not None
        assert (row.state, row.payload) == ("done", {})


async def test_an_unknown_order_of_a_known_user_is_not_booked(
    db: Database, settings: Settings, make_order: MakeOrder
) -> None:
    order = await make_order()
    async with db.transaction() as session:
        await session.execute(delete(Payment).where(Payment.order_id == order.id))
        await session.execute(delete(Order).where(Order.id == order.id))
    sent = completed(order)
    await take(db, settings, sent)
    row = await kept(db, sent["id"])
    assert row is not None
    assert row.state == "dead"


async def test_a_refund_by_hand(
    db: Database, settings: Settings, paying: Settings, stripe_server: StripeServer, make_order: MakeOrder
) -> None:
    order, stripe = await make_order(), Stripe(paying)
    async with db.transaction() as session:
        number = (await session.scalars(select(Payment.id).where(Payment.order_id == order.id))).one()
    with pytest.raises(NotRefundable):
        await payments.refund(db, stripe, number)
    await take(db, settings, completed(order))
    first = await payments.refund(db, stripe, number, 100)
    assert await payments.refund(db, stripe, number, 100) == first, "the same refund, asked for twice"
    assert stripe_server.told("/v1/refunds") == [{"payment_intent": intent_of(order), "amount": "100"}] * 2
    await take(db, settings, refunded(order, 100, at=int(time.time())))
    with pytest.raises(NotRefundable) as refused:
        await payments.refund(db, stripe, number, 266)
    assert refused.value.context["refundable_cents"] == 265
    assert await payments.refund(db, stripe, number) != first
    assert stripe_server.told("/v1/refunds")[-1]["amount"] == "265"
    with pytest.raises(PaymentNotFound):
        await payments.refund(db, stripe, 2**40)
    await stripe.close()


def test_every_kind_of_return_has_its_place() -> None:
    assert set(disputes._RANK) == set(disputes.DISPUTES)
