"""What people and the scheduler do with jobs: cancel them, and sweep up what was lost."""

import logging
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs import queue
from backend.jobs.errors import JobAlreadyEnded, JobNotFound
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
    asked = await queue.ask_to_cancel(session, job)
    if asked is None:
        current = await session.get(Job, job.id, populate_existing=True)
        if current is None:
            raise JobNotFound()
        if current.state != JobState.CANCELLED:
            raise JobAlreadyEnded(state=current.state)
        return current
    if asked.state == JobState.CANCELLED:
        after_commit(session, lambda: publish_end(events, asked))
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
    """One tick of the sweeper: ends, requeues and resends what was lost. Returns how many messages it sent."""
    async with db.transaction() as session:
        if not await claim_tick(session, "jobs.sweep", period_seconds):
            return 0
    await _end_lost(db, EventLog(redis))
    backlog = await _backlog(redis)
    async with db.transaction() as session:
        requeued = await queue.requeue_expired(session)
        due = await queue.take_due(session, resend_seconds=resend_seconds, backlog=backlog)
    sent = await _send(db, broker, due)
    if requeued or sent:
        log.info("sweeper requeued %d jobs and sent %d messages", requeued, sent)
    return sent


async def _end_lost(db: Database, events: EventLog) -> None:
    """Each in a transaction of its own: one whose ending fails must not keep the others from their rescue."""
    async with db.transaction() as session:
        ids = await queue.find_lost(session)
    for job_id in ids:
        try:
            async with db.transaction() as session:
                job = await queue.end_lost(session, job_id)
        except Exception:
            log.exception("job %d cannot be ended; the next sweep tries again", job_id)
            continue
        if job is not None:
            log.warning("job %s (%s) ended by the sweeper: %s", job.public_id, job.kind, job.state)
            await publish_end(events, job)


async def _send(db: Database, broker: Broker, due: Sequence[tuple[str, str, int]]) -> int:
    for sent, (kind, queue_name, job_id) in enumerate(due):
        if not await broker.send(kind, queue_name, job_id):
            async with db.transaction() as session:
                await queue.mark_unsent(session, [row[2] for row in due[sent:]])
            return sent
    return len(due)


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
        data["duration_seconds"] = round((job.finished_at - job.started_at).total_seconds())
    return "complete", {**data, **(job.result or {})}


def message_of(job: Job) -> str:
    """The step that the job is at, or was at when it failed; a success is past its last step."""
    return "Done" if job.state == JobState.SUCCESS else job.message


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
