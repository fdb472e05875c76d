"""Stripe's events: kept first, then handled from their rows, each exactly once, in whatever order they come."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import handlers
from backend.billing.handlers import Outcome
from backend.billing.models import Payment, StripeEvent
from backend.billing.payments import PAID, Contradiction
from backend.jobs.service import claim_tick
from backend.kit.config import Settings
from backend.kit.db import Database, is_one_of

log = logging.getLogger(__name__)

HANDLE_TASK, SWEEP_TASK = "payments.handle", "payments.sweep"
# Where long jobs may be in the way: then the sweep comes first, from the queue of its own that nothing else may fill.
QUEUE: Final = "default"
SWEEP_SECONDS: Final = 10.0
PENDING, DONE, IGNORED, PARKED, DEAD = "pending", "done", "ignored", "parked", "dead"
# The message that leaves with the event has so long before a sweep looks after it.
_FIRST_SECONDS: Final = 5.0
# 5, 10, 20 ... seconds, at most an hour: twelve attempts take about two hours and a half.
_RETRY_SECONDS, _MAX_RETRY_SECONDS, MAX_ATTEMPTS = 5.0, 3600.0, 12
_BATCH: Final = 200
# Other sweeps wait meanwhile.
_SWEEP_BUDGET_SECONDS: Final = 5.0
_NOW = func.clock_timestamp()
# Of a person whose account is gone, nothing is kept but that the event was there.
_EMPTIED: Final[dict[str, Any]] = {}


@dataclass(slots=True)
class Handled:
    """What handling brought: events that waited for it, and orders whose work may start now."""

    released: list[int] = field(default_factory=list)
    paid_orders: list[int] = field(default_factory=list)


async def keep(session: AsyncSession, payload: dict[str, Any]) -> int | None:
    """Writes an event down; None when it was here before. The payload's signature was checked."""
    payload = _storable(payload)
    return await session.scalar(
        insert(StripeEvent)
        .values(
            event_id=str(payload["id"])[:100],
            type=str(payload["type"])[:80],
            payload=payload,
            occurred_at=datetime.fromtimestamp(int(payload["created"]), UTC),
            next_attempt_at=_NOW + timedelta(seconds=_FIRST_SECONDS),
        )
        .on_conflict_do_nothing(index_elements=["event_id"])
        .returning(StripeEvent.id)
    )


async def handle(db: Database, settings: Settings, number: int) -> Handled:
    """Handles one kept event in one transaction, and then those that waited for it. What fails is tried again later."""
    done = Handled()
    waiting = [number]
    while waiting:
        handled = await _handle_one(db, settings, waiting.pop())
        waiting += handled.released
        done.released += handled.released
        done.paid_orders += handled.paid_orders
    return done


async def sweep(db: Database, settings: Settings) -> Handled:
    """One tick: handles what no message brought to an end. Returns what came of it."""
    async with db.transaction() as session:
        if not await claim_tick(session, SWEEP_TASK, SWEEP_SECONDS):
            return Handled()
    return await handle_due(db, settings)


async def handle_due(db: Database, settings: Settings, *, at_once: bool = False) -> Handled:
    """Handles every event whose time has come (or each that is pending), in the order in which they happened."""
    done = Handled()
    async with db.transaction() as session:
        await _release_known(session)
    until = datetime.now(UTC) + (timedelta(days=1) if at_once else timedelta(seconds=_SWEEP_BUDGET_SECONDS))
    due = (
        select(StripeEvent.id)
        .where(StripeEvent.state == PENDING, literal(at_once) | (StripeEvent.next_attempt_at <= _NOW))
        .order_by(StripeEvent.occurred_at, StripeEvent.id)
        .limit(_BATCH)
    )
    seen: set[int] = set()
    while datetime.now(UTC) < until:
        async with db.transaction() as session:
            # Those that failed just now are still pending, and must not be in the way of the others.
            numbers = (await session.scalars(due.where(~is_one_of(StripeEvent.id, sorted(seen))))).all()
        if not numbers:
            break
        seen.update(numbers)
        for number in numbers:
            handled = await handle(db, settings, number)
            done.released += handled.released
            done.paid_orders += handled.paid_orders
            if datetime.now(UTC) > until:
                break
    return done


async def replay(session: AsyncSession, event_id: str | None = None) -> Sequence[int]:
    """Gives a dead or parked event another chance, or all dead ones; returns their numbers."""
    which = StripeEvent.state == DEAD if event_id is None else StripeEvent.state.in_([DEAD, PARKED])
    rows = await session.scalars(
        update(StripeEvent)
        .where(which, literal(True) if event_id is None else StripeEvent.event_id == event_id)
        .values(state=PENDING, attempts=0, error=None, waits_for=None, next_attempt_at=_NOW)
        .returning(StripeEvent.id)
    )
    return rows.all()


async def count_open(session: AsyncSession, numbers: Sequence[int]) -> int:
    """How many of these are not at their end."""
    left = select(func.count()).where(is_one_of(StripeEvent.id, numbers), StripeEvent.state.not_in([DONE, IGNORED]))
    return int(await session.scalar(left) or 0)


async def list_events(session: AsyncSession, states: Sequence[str], limit: int) -> Sequence[StripeEvent]:
    """The newest events in one of these states."""
    query = select(StripeEvent).where(StripeEvent.state.in_(states)).order_by(StripeEvent.id.desc()).limit(limit)
    return (await session.scalars(query)).all()


async def _handle_one(db: Database, settings: Settings, number: int) -> Handled:
    try:
        async with db.transaction() as session:
            # Whoever has the row is at it; a second message finds it locked, or no longer pending.
            event = await session.scalar(
                select(StripeEvent)
                .where(StripeEvent.id == number, StripeEvent.state == PENDING)
                .with_for_update(skip_locked=True)
            )
            if event is None:
                return Handled()
            outcome = await handlers.apply(session, settings, event)
            return await _close(session, event, outcome)
    except Contradiction as error:
        log.error("Stripe's event %d is not handled: %s", number, error)
        await _note_failure(db, number, str(error), for_good=True)
    except Exception as error:
        log.exception("Stripe's event %d could not be handled; it is tried again", number)
        await _note_failure(db, number, f"{type(error).__name__}: {error}"[:1000], for_good=False)
    return Handled()


async def _close(session: AsyncSession, event: StripeEvent, outcome: Outcome) -> Handled:
    event.error = None
    if outcome.waits_for is not None:
        event.state, event.waits_for, event.next_attempt_at = PARKED, outcome.waits_for, None
    else:
        event.state = IGNORED if outcome.ignored else DONE
        event.handled_at, event.next_attempt_at, event.waits_for = datetime.now(UTC), None, None
    if outcome.forget:
        event.payload = _EMPTIED
    await session.flush()
    released = await _release(session, outcome.settles) if outcome.settles else []
    return Handled(released, [] if outcome.paid_order is None else [outcome.paid_order])


async def _release(session: AsyncSession, names: Sequence[str]) -> list[int]:
    rows = await session.scalars(
        update(StripeEvent)
        .where(StripeEvent.state == PARKED, StripeEvent.waits_for.in_(names))
        .values(state=PENDING, waits_for=None, next_attempt_at=_NOW)
        .returning(StripeEvent.id)
    )
    return list(rows.all())


async def _release_known(session: AsyncSession) -> None:
    """What waits for a payment that is there. Only a replay by hand can leave such an event, and it must not stay."""
    known = select(Payment.stripe_payment_intent).where(
        Payment.state == PAID, Payment.stripe_payment_intent == StripeEvent.waits_for
    )
    await session.execute(
        update(StripeEvent)
        .where(StripeEvent.state == PARKED, known.exists())
        .values(state=PENDING, waits_for=None, next_attempt_at=_NOW)
    )


async def _note_failure(db: Database, number: int, words: str, *, for_good: bool) -> None:
    pause = func.least(_RETRY_SECONDS * func.power(2, StripeEvent.attempts), _MAX_RETRY_SECONDS)
    async with db.transaction() as session:
        attempts = await session.scalar(
            update(StripeEvent)
            .where(StripeEvent.id == number, StripeEvent.state == PENDING)
            .values(
                attempts=StripeEvent.attempts + 1,
                error=words,
                next_attempt_at=_NOW + pause * text("interval '1 second'"),
            )
            .returning(StripeEvent.attempts)
        )
        if attempts is not None and (for_good or attempts >= MAX_ATTEMPTS):
            log.error("Stripe's event %d is given up: see `finetuneflow admin stripe events`", number)
            await session.execute(
                update(StripeEvent).where(StripeEvent.id == number).values(state=DEAD, next_attempt_at=None)
            )


def _storable(value: Any) -> Any:
    """The same without what JSONB cannot hold: NUL characters and lone surrogates, which a payer may have typed."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value
