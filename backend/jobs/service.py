"""What people and the scheduler do with jobs: cancel them, and sweep up what was lost."""

import logging

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs import queue
from backend.jobs.errors import JobAlreadyEnded
from backend.jobs.events import EventLog
from backend.jobs.models import Job, Tick
from backend.jobs.states import ENDED, LIVE, JobState
from backend.kit.broker import QUEUES, Broker
from backend.kit.db import Database, after_commit

log = logging.getLogger(__name__)

_TICKS_KEPT = 100


async def cancel(session: AsyncSession, events: EventLog, job: Job) -> Job:
    """Ends a queued job at once; asks the worker of a running one to stop, which it sees within two seconds.

    Raises JobAlreadyEnded for a job that is over, but a second cancel of the same job is no error.
    """
    if job.state == JobState.CANCELLED:
        return job
    if job.state in ENDED:
        raise JobAlreadyEnded(state=job.state)
    cancelled = await queue.cancel_queued(session, job)
    if cancelled is not None:
        public_id = cancelled.public_id

        async def tell() -> None:
            await events.publish(public_id, "complete", {"status": JobState.CANCELLED})

        after_commit(session, tell)
        return cancelled
    asked = await session.scalar(
        update(Job)
        .where(Job.id == job.id, Job.state == JobState.RUNNING)
        .values(cancel_requested_at=func.coalesce(Job.cancel_requested_at, func.clock_timestamp()))
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    if asked is None:
        current = await session.get_one(Job, job.id, populate_existing=True)
        raise JobAlreadyEnded(state=current.state)
    return asked


async def claim_tick(session: AsyncSession, task: str, period_seconds: float) -> bool:
    """True for exactly one caller per period: the scheduler may run twice, or send twice."""
    slot = func.floor(func.extract("epoch", func.clock_timestamp()) / period_seconds)
    taken = await session.execute(
        insert(Tick)
        .from_select(["task", "slot"], select(literal(task), slot))
        .on_conflict_do_nothing()
        .returning(Tick.slot)
    )
    found = taken.scalar_one_or_none()
    if found is None:
        return False
    await session.execute(delete(Tick).where(Tick.task == task, Tick.slot < found - _TICKS_KEPT))
    return True


async def sweep(db: Database, broker: Broker, redis: Redis, *, period_seconds: float, resend_seconds: float) -> int:
    """One tick of the sweeper; returns how many messages it sent."""
    backlog = await _backlog(redis)
    async with db.transaction() as session:
        if not await claim_tick(session, "jobs.sweep", period_seconds):
            return 0
        swept = await queue.sweep(session, resend_seconds=resend_seconds, backlog=backlog)
    events = EventLog(redis)
    for job in swept.ended:
        log.warning("job %s (%s) ended by the sweeper: %s", job.public_id, job.kind, job.state)
        await publish_end(events, job)
    sent = 0
    for kind, queue_name, job_id in swept.resend:
        if not await broker.send(kind, queue_name, job_id):
            break
        sent += 1
    if sent:
        log.info("sweeper sent %d jobs again", sent)
    return sent


async def publish_end(events: EventLog, job: Job) -> None:
    """The last event of a job: `complete` for success and cancellation, `error` for failure."""
    name, data = end_event(job)
    await events.publish(job.public_id, name, data)


def end_event(job: Job) -> tuple[str, dict[str, object]]:
    """Name and data of the event that ends a job's stream, from its row alone."""
    assert job.state in ENDED
    if job.state == JobState.FAILED:
        return "error", {"status": job.state, "error": job.error_message, "error_code": job.error_code}
    data: dict[str, object] = {"status": job.state}
    if job.started_at is not None and job.finished_at is not None:
        data["duration_seconds"] = round((job.finished_at - job.started_at).total_seconds(), 3)
    return "complete", {**data, **(job.result or {})}


async def expire_leases(session: AsyncSession) -> None:
    """For a start of the whole stack, when no worker can be alive: the first sweep takes every job up again."""
    await session.execute(update(Job).where(Job.state == JobState.RUNNING).values(lease_until=func.clock_timestamp()))
    await session.execute(update(Job).where(Job.state.in_(LIVE)).values(dispatched_at=None))


async def _backlog(redis: Redis) -> dict[str, int]:
    """Messages waiting in each queue; none known when Redis does not answer."""
    try:
        async with redis.pipeline(transaction=False) as pipe:
            for name in QUEUES:
                pipe.llen(name)
            return dict(zip(QUEUES, await pipe.execute(), strict=True))
    except (RedisError, OSError):
        return {}
