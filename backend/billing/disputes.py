"""Money that goes back: what refunds and disputes say together, in whatever order they come, and what follows from it.

A payment's events are read anew each time, so that the last one to come decides nothing: the sum of what is known does.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import ledger
from backend.billing.models import Payment, StripeEvent
from backend.billing.payments import entry_params

REFUNDS: Final = ("charge.refunded", "refund.updated", "refund.failed")
DISPUTES: Final = (
    "charge.dispute.created",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.closed",
    "charge.dispute.funds_reinstated",
)
DISPUTE: Final = "dispute"
_UNDONE: Final = frozenset({"failed", "canceled"})
# How a dispute can end without our losing it.
_KEPT: Final = frozenset({"won", "warning_closed", "prevented"})
# Stripe's clock counts seconds: of events of one second, the one that can only come later.
_RANK: Final = {name: rank for rank, name in enumerate(DISPUTES)}


@dataclass(frozen=True, slots=True)
class Fact:
    """One event about money that goes back: its type, Stripe's time of it, and what it is about."""

    type: str
    at: int
    object: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Returned:
    """How much of a payment is back at the payer, taken from us by a dispute, and under dispute; cents."""

    refunded_cents: int = 0
    lost_cents: int = 0
    open_cents: int = 0
    dispute_id: str | None = None
    dispute_state: str | None = None


async def settle(session: AsyncSession, payment: Payment, event: StripeEvent) -> None:
    """Brings a locked payment, its entries and its freeze to what all events about it say.

    Characters follow the money: of a payment of which a part is back, the same part (rounded up) is taken back. What
    is under dispute and still there is frozen.
    """
    found = returned(await _facts(session, payment))
    back = _characters(payment, found.refunded_cents + found.lost_cents)
    frozen = min(_characters(payment, found.open_cents), payment.characters - back)
    payment.refunded_cents = min(found.refunded_cents, payment.amount_cents)
    payment.dispute_id, payment.dispute_state = found.dispute_id, found.dispute_state
    if payment.hold_id is not None:
        await ledger.release(session, payment.hold_id)
        payment.hold_id = None
    await _take(session, payment, back - payment.refunded_characters, event)
    payment.refunded_characters = back
    if frozen:
        available = (await ledger.balance(session, payment.user_id)).available
        if there := min(frozen, available):
            held = await ledger.hold(
                session,
                user_id=payment.user_id,
                characters=there,
                reference=f"{DISPUTE}:{found.dispute_id}:{event.event_id}",
                purpose=DISPUTE,
                params={"payment_id": payment.id},
            )
            payment.hold_id = held.id
    await session.flush()


def returned(facts: Iterable[Fact]) -> Returned:
    """The state of a payment from what is known of it, in any order and with repetitions."""
    facts = list(facts)
    by_dispute: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.type in DISPUTES:
            by_dispute.setdefault(str(fact.object["id"]), []).append(fact)
    lost = open_ = 0
    last: Fact | None = None
    for found in by_dispute.values():
        newest = max(found, key=_moment)
        amount = int(newest.object.get("amount") or 0)
        outcome = _outcome(newest)
        lost += amount if outcome == "lost" else 0
        open_ += amount if outcome == "open" else 0
        last = newest if last is None or _moment(newest) > _moment(last) else last
    return Returned(
        refunded_cents=_refunded(facts),
        lost_cents=lost,
        open_cents=open_,
        dispute_id=None if last is None else str(last.object["id"]),
        dispute_state=None if last is None else str(last.object.get("status"))[:30],
    )


def _refunded(facts: list[Fact]) -> int:
    """Stripe's own count on the charge, less the refunds that failed after that count was taken.

    The greatest count of the newest second: each refund raises it, and only a failure lowers it.
    """
    counts = [
        (fact.at, int(fact.object.get("amount_refunded") or 0)) for fact in facts if fact.type == "charge.refunded"
    ]
    if not counts:
        return 0
    counted_at, count = max(counts)
    undone: dict[str, tuple[int, int, int]] = {}
    for fact in facts:
        if fact.type in REFUNDS and fact.object.get("object") == "refund" and fact.object.get("status") in _UNDONE:
            made_at = int(fact.object.get("created") or 0)
            entry = (fact.at, made_at, int(fact.object.get("amount") or 0))
            undone[str(fact.object["id"])] = min(entry, undone.get(str(fact.object["id"]), entry))
    failed = sum(amount for at, made_at, amount in undone.values() if made_at <= counted_at <= at)
    return max(count - failed, 0)


def _outcome(newest: Fact) -> str:
    """What a dispute's newest event makes of the money: open, lost, or kept."""
    if newest.type == "charge.dispute.funds_withdrawn":
        return "lost"
    if newest.type == "charge.dispute.funds_reinstated":
        return "kept"
    status = newest.object.get("status")
    if newest.type == "charge.dispute.closed":
        return "kept" if status in _KEPT else "lost"
    return "open"


def _moment(fact: Fact) -> tuple[int, int]:
    return fact.at, _RANK[fact.type]


async def _facts(session: AsyncSession, payment: Payment) -> list[Fact]:
    intent = StripeEvent.payload["data"]["object"]["payment_intent"].astext
    rows = await session.execute(
        select(StripeEvent.type, StripeEvent.payload).where(
            StripeEvent.user_id == payment.user_id,
            StripeEvent.type.in_([*REFUNDS, *DISPUTES]),
            intent == payment.stripe_payment_intent,
        )
    )
    return [Fact(kind, int(payload["created"]), payload["data"]["object"]) for kind, payload in rows]


def _characters(payment: Payment, cents: int) -> int:
    """As many of the payment's characters as those cents are of its amount, rounded up; at most all."""
    if not payment.amount_cents:
        return 0
    return -(-payment.characters * min(cents, payment.amount_cents) // payment.amount_cents)


async def _take(session: AsyncSession, payment: Payment, characters: int, event: StripeEvent) -> None:
    """Takes characters back, or gives them again where it is negative."""
    reference = f"payment:{payment.public_id}:{event.event_id}"
    params = {**entry_params(payment), "stripe_event": event.event_id}
    if characters > 0:
        kind = ledger.CHARGEBACK if event.type in DISPUTES else ledger.REFUND
        await ledger.take_back(
            session, user_id=payment.user_id, kind=kind, characters=characters, reference=reference, params=params
        )
    elif characters < 0:
        await ledger.credit(
            session,
            user_id=payment.user_id,
            kind=ledger.REINSTATEMENT,
            characters=-characters,
            reference=reference,
            params=params,
        )
