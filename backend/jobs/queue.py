"""Jobs as rows: put in, claimed under a fence, renewed, ended, and swept when their worker or message was lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Interval, case, cast, func, literal, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs import kinds
from backend.jobs.errors import JobAlreadyRunning, LeaseLost
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import ENDED, JobState, sources_of
from backend.kit.broker import Broker
from backend.kit.db import after_commit

SWEEP_LIMIT = 500
_MAX_RESEND_SECONDS = 40.0
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


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did: jobs to be sent again, and jobs that it ended."""

    resend: Sequence[tuple[str, str, int]]
    ended: Sequence[Job]


async def enqueue(
    session: AsyncSession,
    broker: Broker,
    kind: JobKind,
    *,
    user_id: int,
    project_id: int | None,
    params: dict[str, Any] | None = None,
    exclusive_key: str | None = None,
) -> Job:
    """Inserts a job in the caller's transaction; its message leaves after the commit.

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
        dispatched_at=_NOW,
        dispatches=1,
    )
    try:
        async with session.begin_nested():
            session.add(job)
    except IntegrityError as error:
        if "uq_jobs_exclusive_key_live" not in str(error.orig):
            raise
        raise JobAlreadyRunning(kind=kind.name) from error
    job_id = job.id

    async def send() -> None:
        await broker.send(kind.name, kind.queue, job_id)

    after_commit(session, send)
    return job


async def claim(session: AsyncSession, job_id: int, *, worker: str, lease_seconds: float) -> Claim | None:
    """Takes a queued job, or returns None when somebody else has it or it is not to be run now."""
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


async def report(session: AsyncSession, claim: Claim, *, progress_pct: float, message: str) -> None:
    row = await session.execute(
        _guarded(claim)
        .values(progress_pct=func.greatest(Job.progress_pct, progress_pct), message=message)
        .returning(Job.id)
    )
    if row.one_or_none() is None:
        raise LeaseLost()


async def finish(
    session: AsyncSession,
    claim: Claim,
    state: JobState,
    *,
    result: dict[str, Any] | None = None,
    error_code: str | None = None,
    error_message: str | None = None,
) -> Job:
    """Ends a claimed job, and what it is about with it. Raises LeaseLost when it is no longer this claim's."""
    return await _end(
        session,
        _guarded(claim),
        state,
        result=result,
        error_code=error_code,
        error_message=error_message,
    )


async def put_back(session: AsyncSession, claim: Claim, *, delay_seconds: float, counts: bool) -> None:
    """Returns a claimed job to its queue; `counts=False` gives the attempt back (the worker was told to stop)."""
    row = await session.execute(
        _guarded(claim)
        .values(
            state=JobState.QUEUED,
            worker=None,
            lease_until=None,
            dispatched_at=None,
            attempts=Job.attempts if counts else Job.attempts - 1,
            available_at=_in_seconds(delay_seconds),
        )
        .returning(Job.id)
    )
    if row.one_or_none() is None:
        raise LeaseLost()


def retry_delay_seconds(attempts: int) -> float:
    """2, 4, 8 ... 60 seconds after the first, second, third ... attempt."""
    return float(min(_RETRY_SECONDS * 2 ** max(attempts - 1, 0), _MAX_RETRY_SECONDS))


async def cancel_queued(session: AsyncSession, job: Job) -> Job | None:
    """Ends a job that no worker has; None when a worker took it meanwhile."""
    statement = update(Job).where(Job.id == job.id, Job.state == JobState.QUEUED)
    try:
        return await _end(session, statement, JobState.CANCELLED)
    except LeaseLost:
        return None


async def sweep(session: AsyncSession, *, resend_seconds: float, backlog: dict[str, int]) -> Swept:
    """Finds what was lost: running jobs whose lease ran out, and queued jobs that nobody claimed.

    `backlog` holds the number of messages that wait in each queue (a missing queue counts as none). Where every queued
    job still has a message there, nothing is sent again: the workers are merely busy.
    """
    ended = [*await _end_hopeless(session), *await _end_cancelled(session)]
    await session.execute(
        update(Job)
        .where(Job.id.in_(_expired().limit(SWEEP_LIMIT)))
        .values(state=JobState.QUEUED, worker=None, lease_until=None, dispatched_at=None)
    )
    return Swept(resend=await _due(session, resend_seconds, backlog), ended=ended)


async def _end_hopeless(session: AsyncSession) -> list[Job]:
    """Running jobs that lost their worker too often: the dead letters."""
    ids = await session.scalars(_expired().where(Job.attempts >= Job.max_attempts, ~_cancelling()).limit(SWEEP_LIMIT))
    return [
        await _end(
            session,
            update(Job).where(Job.id == job_id),
            JobState.FAILED,
            error_code="JOB_GAVE_UP",
            error_message="The worker was lost on every attempt. Start the job again; if it fails again, "
            "give the worker more memory or make the job smaller.",
        )
        for job_id in ids.all()
    ]


async def _end_cancelled(session: AsyncSession) -> list[Job]:
    ids = await session.scalars(_expired().where(_cancelling()).limit(SWEEP_LIMIT))
    return [await _end(session, update(Job).where(Job.id == job_id), JobState.CANCELLED) for job_id in ids.all()]


async def _due(session: AsyncSession, resend_seconds: float, backlog: dict[str, int]) -> list[tuple[str, str, int]]:
    waiting = dict(
        (await session.execute(select(Job.queue, func.count()).where(Job.state == JobState.QUEUED).group_by(Job.queue)))
        .tuples()
        .all()
    )
    short = [queue for queue, count in waiting.items() if backlog.get(queue, 0) < count]
    # 10, 20, 40, 40 ... seconds between two messages for one job.
    wait = func.least(resend_seconds * func.power(2, Job.dispatches - 1), _MAX_RESEND_SECONDS)
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
        .order_by(Job.id)
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
    return sorted(rows.tuples().all(), key=lambda row: row[2])


def _expired() -> Any:
    return (
        select(Job.id)
        .where(Job.state == JobState.RUNNING, Job.lease_until < _NOW)
        .order_by(Job.id)
        .with_for_update(skip_locked=True)
    )


def _cancelling() -> Any:
    return Job.cancel_requested_at.is_not(None)


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
