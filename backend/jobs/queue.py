"""Jobs as rows: put in, claimed under a fence, renewed, ended, and swept when their worker or message was lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Interval, and_, case, cast, func, literal, or_, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs import kinds
from backend.jobs.errors import JobAlreadyRunning, LeaseLost
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import ENDED, LIVE, JobState, sources_of
from backend.kit.broker import Broker
from backend.kit.db import after_commit

SWEEP_LIMIT = 500
_MAX_RESEND_SECONDS = 20.0
# Before a job that lost its worker runs again: 0, 1, 3, 7, 15, 15 ... seconds.
_MAX_RESCUE_SECONDS = 15.0
_RETRY_SECONDS = 2.0
_MAX_RETRY_SECONDS = 60.0
_NOW = func.clock_timestamp()


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to one run of one job. `fence` goes into the WHERE of all its writes."""

    id: int
    public_id: UUID
    fence: int
    kind: str
    user_id: int
    project_id: int | None
    params: dict[str, Any]
    attempts: int
    max_attempts: int


async def enqueue(
    session: AsyncSession,
    broker: Broker,
    kind: JobKind,
    *,
    user_id: int,
    project_id: int | None,
    params: dict[str, Any] | None = None,
    exclusive_key: str | None = None,
    weight: int = 1,
    max_concurrent: int | None = None,
) -> Job:
    """Inserts a job in the caller's transaction; its message leaves after the commit.

    `weight` and `max_concurrent`: the share and the limit of its user, see `jobs.turns`.

    Raises JobAlreadyRunning while another live job has the same `exclusive_key`.
    """
    job = Job(
        user_id=user_id,
        project_id=project_id,
        kind=kind.name,
        queue=kind.queue,
        params=params or {},
        exclusive_key=exclusive_key,
        max_attempts=kind.max_attempts,
        weight=weight,
        max_concurrent=max_concurrent,
        dispatched_at=_NOW,
        dispatches=1,
    )
    try:
        async with session.begin_nested():
            session.add(job)
    except IntegrityError as error:
        if "uq_jobs_exclusive_key_live" not in str(error.orig):
            raise
        # The one in the way may be of another kind, and may have ended since.
        running = select(Job.kind, Job.public_id).where(Job.exclusive_key == exclusive_key, Job.state.in_(LIVE))
        found = (await session.execute(running)).one_or_none()
        name, public_id = found if found is not None else (kind.name, None)
        raise JobAlreadyRunning(kind=name, job_id=public_id and str(public_id)) from error
    job_id = job.id

    async def send() -> None:
        await broker.send(kind.name, kind.queue, job_id)

    after_commit(session, send)
    return job


async def claim(session: AsyncSession, job_id: int, *, worker: str, lease_seconds: float) -> Claim | None:
    """Takes a queued job, or returns None when somebody else has it or it is not to be run now."""
    if not await _has_room(session, job_id):
        return None
    row = await session.execute(
        update(Job)
        .where(
            Job.id == job_id,
            Job.state == JobState.QUEUED,
            Job.cancel_requested_at.is_(None),
            or_(Job.available_at.is_(None), Job.available_at <= _NOW),
        )
        .values(
            state=JobState.RUNNING,
            fence=Job.fence + 1,
            worker=worker,
            lease_until=_in_seconds(lease_seconds),
            attempts=Job.attempts + 1,
            started_at=func.coalesce(Job.started_at, _NOW),
        )
        .returning(
            Job.id,
            Job.public_id,
            Job.fence,
            Job.kind,
            Job.user_id,
            Job.project_id,
            Job.params,
            Job.attempts,
            Job.max_attempts,
        )
    )
    found = row.one_or_none()
    return None if found is None else Claim(*found)


async def _has_room(session: AsyncSession, job_id: int) -> bool:
    """Whether its user may have one more job running in its queue; the lock makes two claims of one user take turns."""
    limits = await session.execute(
        select(Job.queue, Job.user_id, Job.max_concurrent).where(Job.id == job_id, Job.max_concurrent.is_not(None))
    )
    found = limits.one_or_none()
    if found is None:
        return True
    key = func.hashtextextended(f"{found.queue}:{found.user_id}", 0)
    await session.execute(select(func.pg_advisory_xact_lock(key)))
    running = select(func.count()).where(
        Job.queue == found.queue, Job.user_id == found.user_id, Job.state == JobState.RUNNING
    )
    limit: int = found.max_concurrent
    return int(await session.scalar(running) or 0) < limit


async def renew(session: AsyncSession, claim: Claim, *, lease_seconds: float) -> bool:
    """Extends the lease; True when the job is to be cancelled. Raises LeaseLost when it is no longer this claim's."""
    row = await session.execute(
        _guarded(claim).values(lease_until=_in_seconds(lease_seconds)).returning(Job.cancel_requested_at)
    )
    found = row.one_or_none()
    if found is None:
        raise LeaseLost()
    return found[0] is not None


async def hold(session: AsyncSession, claim: Claim) -> None:
    """Locks the job's row for the rest of the transaction, so that what is written in it is written by its holder."""
    held = await session.scalar(
        select(Job.id)
        .where(Job.id == claim.id, Job.fence == claim.fence, Job.state == JobState.RUNNING)
        .with_for_update(key_share=True)
    )
    if held is None:
        raise LeaseLost()


async def note(session: AsyncSession, claim: Claim, **values: Any) -> None:
    """Adds to the job's params what a run found out, for its next runs and its ending. Raises LeaseLost."""
    row = await session.execute(_guarded(claim).values(params=Job.params.concat(cast(values, JSONB))).returning(Job.id))
    if row.one_or_none() is None:
        raise LeaseLost()
    claim.params.update(values)


async def report(session: AsyncSession, claim: Claim, *, progress_pct: float, message: str) -> float:
    """Keeps the message and the progress, which never goes back; returns the progress kept. Raises LeaseLost."""
    row = await session.execute(
        _guarded(claim)
        .values(progress_pct=func.greatest(Job.progress_pct, progress_pct), message=message)
        .returning(Job.progress_pct)
    )
    kept = row.scalar_one_or_none()
    if kept is None:
        raise LeaseLost()
    return float(kept)


async def finish(
    session: AsyncSession,
    claim: Claim,
    state: JobState,
    *,
    result: dict[str, Any] | None = None,
    error_code: str | None = None,
    error_message: str | None = None,
    error_context: dict[str, Any] | None = None,
) -> Job:
    """Ends a claimed job, and what it is about with it. Raises LeaseLost when it is no longer this claim's."""
    return await _end(
        session,
        _guarded(claim),
        state,
        result=result,
        error_code=error_code,
        error_message=error_message,
        error_context=error_context,
    )


async def put_back(
    session: AsyncSession, claim: Claim, *, delay_seconds: float, counts: bool, message: str | None = None
) -> Job | None:
    """Returns a claimed job to its queue; `counts=False` gives the attempt back (the worker was told to stop).

    `message` says why, and is what the job shows while it waits (None: what it said last).

    A job whose cancel was asked for meanwhile ends instead, and is returned. Raises LeaseLost.
    """
    row = await session.execute(
        _guarded(claim)
        .where(Job.cancel_requested_at.is_(None))
        .values(
            state=JobState.QUEUED,
            worker=None,
            lease_until=None,
            dispatched_at=None,
            attempts=Job.attempts if counts else Job.attempts - 1,
            available_at=_in_seconds(delay_seconds),
            message=Job.message if message is None else message,
        )
        .returning(Job.id)
    )
    if row.one_or_none() is not None:
        return None
    return await _end(session, _guarded(claim), JobState.CANCELLED)


def retry_delay_seconds(attempts: int) -> float:
    """2, 4, 8 ... 60 seconds after the first, second, third ... attempt."""
    return float(min(_RETRY_SECONDS * 2 ** max(attempts - 1, 0), _MAX_RETRY_SECONDS))


async def ask_to_cancel(session: AsyncSession, job: Job) -> Job | None:
    """Marks a live job for its worker, or ends it at once when no worker has it; None when it is over.

    One statement looks at both states and locks the row, so the job cannot slip from one to the other in between.
    """
    asked = await session.scalar(
        update(Job)
        .where(Job.id == job.id, Job.state.in_(LIVE))
        .values(cancel_requested_at=func.coalesce(Job.cancel_requested_at, _NOW))
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    if asked is None or asked.state == JobState.RUNNING:
        return asked
    return await _end(session, update(Job).where(Job.id == job.id), JobState.CANCELLED)


async def find_lost(session: AsyncSession) -> Sequence[int]:
    """The ids of jobs that nobody will end any more: their worker is gone, and they may not run again."""
    return (await session.scalars(select(Job.id).where(_is_lost()).order_by(Job.id).limit(SWEEP_LIMIT))).all()


async def end_lost(session: AsyncSession, job_id: int) -> Job | None:
    """Ends one of them: cancelled if that was asked for, else a dead letter. None when it came back to life."""
    locked = select(Job).where(Job.id == job_id, _is_lost()).with_for_update(skip_locked=True)
    job = await session.scalar(locked)
    if job is None:
        return None
    statement = update(Job).where(Job.id == job_id)
    if job.cancel_requested_at is not None:
        return await _end(session, statement, JobState.CANCELLED)
    return await _end(
        session,
        statement,
        JobState.FAILED,
        error_code="JOB_GAVE_UP",
        error_message="The worker was lost on every attempt. Start the job again; if it fails again, "
        "give the worker more memory or make the job smaller.",
    )


async def requeue_expired(session: AsyncSession) -> int:
    """Puts running jobs whose lease ran out back into their queues; returns how many."""
    expired = (
        select(Job.id)
        .where(_is_expired(), Job.attempts < Job.max_attempts, Job.cancel_requested_at.is_(None))
        .order_by(Job.lease_until)
        .limit(SWEEP_LIMIT)
        .with_for_update(skip_locked=True)
    )
    pause = func.least(func.power(2, func.least(Job.attempts - 1, 10)) - 1, _MAX_RESCUE_SECONDS)
    rows = await session.execute(
        update(Job)
        .where(Job.id.in_(expired))
        .values(
            state=JobState.QUEUED,
            worker=None,
            lease_until=None,
            dispatched_at=None,
            message="The worker was lost. Another one takes the job up again.",
            available_at=_NOW + pause * text("interval '1 second'"),
        )
        .returning(Job.id)
    )
    return len(rows.all())


async def take_due(
    session: AsyncSession, *, resend_seconds: float, backlog: Mapping[str, int]
) -> Sequence[tuple[str, str, int]]:
    """Kind, queue and id of the queued jobs whose message is to be sent (again) now; marks them as sent.

    `backlog` holds the number of messages that wait in each queue (a missing queue counts as none). Where every job
    that was sent still has a message there, nothing is sent again: the workers are merely busy.
    """
    sent = select(Job.queue, func.count()).where(Job.state == JobState.QUEUED, Job.dispatched_at.is_not(None))
    waiting = await session.execute(sent.group_by(Job.queue))
    short = [queue for queue, count in waiting if backlog.get(queue, 0) < count]
    # 10, 20, 20 ... seconds between two messages for one job. The exponent is bounded: 2^1024 is an error.
    wait = func.least(resend_seconds * func.power(2, func.least(Job.dispatches - 1, 10)), _MAX_RESEND_SECONDS)
    due = (
        select(Job.id)
        .where(
            Job.state == JobState.QUEUED,
            or_(Job.available_at.is_(None), Job.available_at <= _NOW),
            or_(
                Job.dispatched_at.is_(None),
                Job.queue.in_(short) & (Job.dispatched_at < _NOW - wait * text("interval '1 second'")),
            ),
        )
        .order_by(Job.dispatched_at.nulls_first(), Job.id)
        .limit(SWEEP_LIMIT)
        .with_for_update(skip_locked=True)
    )
    rows = await session.execute(
        update(Job)
        .where(Job.id.in_(due))
        .values(
            dispatched_at=_NOW,
            dispatches=case((Job.dispatched_at.is_(None), 1), else_=Job.dispatches + 1),
        )
        .returning(Job.kind, Job.queue, Job.id)
    )
    return sorted(((kind, queue, job_id) for kind, queue, job_id in rows), key=lambda row: row[2])


async def mark_unsent(session: AsyncSession, ids: Sequence[int]) -> None:
    """For jobs whose message did not leave: the next sweep sends it, without waiting for an answer to it."""
    await session.execute(update(Job).where(Job.id.in_(ids), Job.state == JobState.QUEUED).values(dispatched_at=None))


def _is_expired() -> ColumnElement[bool]:
    return and_(Job.state == JobState.RUNNING, Job.lease_until < _NOW)


def _is_lost() -> ColumnElement[bool]:
    cancelling = Job.cancel_requested_at.is_not(None)
    return or_(
        and_(_is_expired(), or_(cancelling, Job.attempts >= Job.max_attempts)),
        and_(Job.state == JobState.QUEUED, cancelling),
    )


def _guarded(claim: Claim) -> Any:
    return update(Job).where(Job.id == claim.id, Job.fence == claim.fence, Job.state == JobState.RUNNING)


async def _end(session: AsyncSession, statement: Any, state: JobState, **values: Any) -> Job:
    assert state in ENDED
    rows = await session.scalars(
        statement.where(Job.state.in_(sources_of(state)))
        .values(
            state=state,
            finished_at=_NOW,
            lease_until=None,
            worker=None,
            progress_pct=100.0 if state is JobState.SUCCESS else Job.progress_pct,
            **values,
        )
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    job: Job | None = rows.one_or_none()
    if job is None:
        raise LeaseLost()
    ending = kinds.get(job.kind).ending
    if ending is not None:
        await ending(session, job)
    return job


def _in_seconds(seconds: float) -> Any:
    return _NOW + cast(literal(timedelta(seconds=seconds)), Interval)
