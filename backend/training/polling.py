"""Asks providers how their jobs stand: each job by one poller at a time, and never inside a transaction."""

import asyncio
import logging
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs.events import EventLog
from backend.jobs.service import claim_tick
from backend.kit.config import Settings
from backend.kit.crypto import CannotUnseal, Sealer
from backend.kit.db import Database
from backend.kit.errors import DomainError
from backend.projects import service as projects
from backend.projects.errors import ProjectNotFound
from backend.providers.tuning.base import (
    ProviderAnswerBroken,
    ProviderRateLimited,
    ProviderRefused,
    TuningError,
    TuningProgress,
)
from backend.training import statuses
from backend.training.errors import (
    ProviderJobFailed,
    ProviderJobLost,
    ProviderJobUnfollowed,
    ProviderJobUnsure,
    ProviderKeyGone,
)
from backend.training.fine_tunings import UNSURE, end, fail
from backend.training.models import FineTuning
from backend.training.remote import provider_of
from backend.training.statuses import Status

log = logging.getLogger(__name__)

TASK: Final = "fine_tunings.poll"
PERIOD_SECONDS: Final = 15.0
# A poller that dies leaves its jobs alone for so long; one that lives ends each within _POLL_SECONDS.
LEASE_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 120.0
_AT_ONCE: Final = 8
_BATCH: Final = 40
_FIRST_WAIT, _LONGEST_WAIT, _GROWTH = 30.0, 600.0, 1.3
# Failures in a row after which a run ends in error: about four days of an outage, and fewer where it is no outage.
GIVE_UP: Final = {"outage": 600, "broken": 20, "refused": 5}
# A provider may list a job some time after it took it.
LOOKUPS: Final = 3


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run that is this poller's until `lease`, which is in the WHERE of what it writes."""

    run: FineTuning
    lease: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What asking brought: progress, a job that was found or not, or an error."""

    progress: TuningProgress | None = None
    external_id: str | None = None
    state: dict[str, Any] = field(default_factory=dict)
    cancelled: bool = False
    error: DomainError | None = None


async def tick(db: Database, settings: Settings, sealer: Sealer, events: EventLog) -> int:
    """One period of the scheduler, which may tick twice. Returns how many jobs were asked for."""
    async with db.transaction() as session:
        if not await claim_tick(session, TASK, PERIOD_SECONDS):
            return 0
    return await poll_due(db, settings, sealer, events)


async def poll_due(db: Database, settings: Settings, sealer: Sealer, events: EventLog) -> int:
    """Asks for every job that is due; one that goes wrong is no matter of the others. Returns how many there were."""
    async with db.transaction() as session:
        claimed = await _claim(session)
    free = asyncio.Semaphore(_AT_ONCE)

    async def one(claim: Claimed) -> None:
        async with free:
            try:
                answer = await _ask(db, settings, sealer, claim.run)
                ended = await _apply(db, claim, answer)
            except Exception:
                log.exception("fine-tuning %s could not be polled; it is asked for again", claim.run.public_id)
                return
            await _tell(events, claim.run, ended, answer)
            if ended is not None and answer.external_id is not None:
                await _forget(db, settings, sealer, claim.run, answer)

    await asyncio.gather(*(one(claim) for claim in claimed))
    return len(claimed)


async def _claim(session: AsyncSession) -> Sequence[Claimed]:
    """Locks what is due just long enough to move it into the future, where no other poller sees it."""
    now = func.clock_timestamp()
    due = (
        select(FineTuning)
        .where(FineTuning.next_poll_at <= now)
        .order_by(FineTuning.next_poll_at)
        .limit(_BATCH)
        .with_for_update(skip_locked=True, key_share=True)
    )
    lease = datetime.now(UTC) + timedelta(seconds=LEASE_SECONDS)
    claimed = []
    for run in (await session.scalars(due)).all():
        run.next_poll_at = lease
        run.provider_state = {**run.provider_state, "polling": True}
        claimed.append(Claimed(run, lease))
    await session.flush()
    return claimed


async def _ask(db: Database, settings: Settings, sealer: Sealer, run: FineTuning) -> Answer:
    """What the provider says now. A cancel that was asked for is passed on first."""
    external_id, state = run.external_id, dict(run.provider_state.get("job", {}))
    cancelled = False
    try:
        async with asyncio.timeout(_POLL_SECONDS), provider_of(db, settings, sealer, run) as provider:
            if external_id is None:
                found = await provider.find(run.public_id)
                if found is None:
                    return Answer()
                external_id, state = found.external_id, found.state
            if run.cancel_requested_at is not None:
                await provider.cancel(external_id)
                cancelled = True
            progress = await provider.poll(external_id, state)
            return Answer(progress=progress, external_id=external_id, state=progress.state, cancelled=cancelled)
    except (TuningError, ProviderKeyGone, ProjectNotFound) as error:
        return Answer(error=error, external_id=external_id, state=state, cancelled=cancelled)
    except CannotUnseal:
        return Answer(error=ProviderKeyGone(provider=run.provider), external_id=external_id, state=state)
    except TimeoutError:
        detail = f"{run.provider} did not answer within {_POLL_SECONDS:.0f} s. It is asked again."
        return Answer(error=DomainError(detail), external_id=external_id, state=state, cancelled=cancelled)


async def _apply(db: Database, claim: Claimed, answer: Answer) -> Status | None:
    """Writes down what was said, if the run is still this poller's; returns its status if it ended by this."""
    async with db.transaction() as session:
        run = await session.scalar(
            select(FineTuning)
            .where(FineTuning.id == claim.run.id, FineTuning.next_poll_at == claim.lease)
            .with_for_update(key_share=True)
        )
        if run is None or run.status in statuses.ENDED:
            return None
        kept = {name: value for name, value in run.provider_state.items() if name != "polling"}
        if answer.external_id is not None:
            run.external_id = answer.external_id
            run.submitted_at = run.submitted_at or datetime.now(UTC)
            kept["job"] = answer.state
        run.provider_state = kept
        if answer.error is not None:
            _take_error(run, answer.error)
        elif answer.progress is None:
            _take_absence(run)
        else:
            _take_progress(run, answer.progress)
        cancelling = run.cancel_requested_at is not None and not answer.cancelled
        if cancelling and answer.progress is not None and run.status not in statuses.ENDED:
            # It was asked for while the provider was asked.
            run.next_poll_at = datetime.now(UTC)
        await session.flush()
        if run.status in statuses.ENDED:
            await projects.settle_stage(session, run.project_id, failed=run.status == Status.ERROR)
            return Status(run.status)
        return None


def _take_progress(run: FineTuning, told: TuningProgress) -> None:
    changed = {"status": told.status, "progress": told.progress, **told.metrics}
    state = dict(run.provider_state)
    state["quiet"] = int(state.get("quiet", 0)) + 1 if state.get("seen") == changed else 0
    state["seen"] = changed
    state.pop(UNSURE, None)
    state.pop("lookups", None)
    if told.result_model is not None:
        state["result_model"] = told.result_model
    if told.trained_tokens is not None:
        state["trained_tokens"] = told.trained_tokens
    run.provider_state = state
    run.poll_failures = 0
    run.metrics = {**run.metrics, **told.metrics}
    run.progress = max(run.progress, told.progress or 0.0)
    status = Status(statuses.furthest(run.status, told.status))
    if status not in statuses.ENDED:
        run.status = status
        run.next_poll_at = _in(_wait(_FIRST_WAIT * _GROWTH ** min(state["quiet"], 20)))
    elif status is Status.COMPLETED:
        end(run, status, None)
    elif status is Status.CANCELLED:
        message = None if run.cancel_requested_at is not None else f"The job was cancelled at {run.provider}."
        end(run, status, message)
    else:
        words = told.error_message or "it does not say why."
        fail(run, ProviderJobFailed(told.error_message or None, provider=run.provider, words=words))


def _take_absence(run: FineTuning) -> None:
    """The provider knows no such job. It is asked some times more, because its list may lag behind."""
    lookups = int(run.provider_state.get("lookups", 0)) + 1
    run.provider_state = {**run.provider_state, "lookups": lookups}
    if lookups < LOOKUPS:
        run.next_poll_at = _in(_wait(_FIRST_WAIT * lookups))
    elif run.cancel_requested_at is not None:
        end(run, Status.CANCELLED, None)
    else:
        words = run.provider_state.get(UNSURE) or "The job could not be submitted."
        fail(run, ProviderJobLost(provider=run.provider, words=words))


def _take_error(run: FineTuning, error: DomainError) -> None:
    run.poll_failures += 1
    if isinstance(error, ProviderKeyGone | ProjectNotFound):
        fail(run, error)
        return
    kind = {ProviderAnswerBroken: "broken", ProviderRefused: "refused"}.get(type(error), "outage")
    if run.poll_failures >= GIVE_UP[kind]:
        told: dict[str, Any] = {"provider": run.provider, "times": run.poll_failures, "words": error.detail.rstrip(".")}
        if run.external_id is not None:
            fail(run, ProviderJobUnfollowed(external_id=run.external_id, **told))
        else:
            fail(run, ProviderJobUnsure(**told))
        return
    wait = _wait(_FIRST_WAIT * 2.0 ** min(run.poll_failures - 1, 10))
    if isinstance(error, ProviderRateLimited) and error.retry_after is not None:
        wait = max(wait, error.retry_after)
    run.next_poll_at = _in(wait)


def _wait(seconds: float) -> float:
    """At most ten minutes, and a fifth more or less, so that jobs of one moment do not stay together."""
    return min(seconds, _LONGEST_WAIT) * random.uniform(0.8, 1.2)


def _in(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def _tell(events: EventLog, run: FineTuning, ended: Status | None, answer: Answer) -> None:
    """Into the run's own stream, which goes on where that of its submission ended."""
    progress = answer.progress
    if progress is None and ended is None:
        return
    if progress is not None and progress.metrics:
        await events.publish(run.public_id, "log", dict(progress.metrics))
    if ended is None and progress is not None:
        data = {"progress_pct": round(progress.progress or 0), "message": f"{run.provider}: {progress.status}"}
        await events.publish(run.public_id, "progress", data)
    elif ended is Status.ERROR:
        words = progress.error_message if progress is not None else answer.error and answer.error.detail
        await events.publish(run.public_id, "error", {"status": ended, "error": words})
    elif ended is not None:
        await events.publish(run.public_id, "complete", {"status": ended})


async def _forget(db: Database, settings: Settings, sealer: Sealer, run: FineTuning, answer: Answer) -> None:
    """The files that were sent are of no more use at the provider. What stays there harms nobody."""
    assert answer.external_id is not None
    with suppress(DomainError, CannotUnseal, TimeoutError):
        async with asyncio.timeout(_POLL_SECONDS), provider_of(db, settings, sealer, run) as provider:
            await provider.forget(answer.external_id, answer.state)
