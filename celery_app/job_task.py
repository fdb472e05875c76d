"""Claims a job's row, runs its code, and records the end: the only way in which a job runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from backend.jobs import queue
from backend.jobs.errors import LeaseLost
from backend.jobs.models import Job
from backend.jobs.queue import Claim
from backend.jobs.running import JobRun
from backend.jobs.service import publish_end
from backend.jobs.states import JobState
from backend.kit import log as kit_log
from backend.kit.errors import DomainError
from celery_app import runtime
from celery_app.runtime import Runtime

log = logging.getLogger(__name__)

# What a job's code is: it gets its run and the process's runtime, and returns the summary to be shown.
Work = Callable[[JobRun, Runtime], Awaitable[dict[str, Any]]]

_END_ATTEMPTS = 4
T = TypeVar("T")


def run_job(job_id: int, work: Work) -> None:
    """Runs one job in this worker process; returns quietly when the job is not to be run here and now."""
    current = runtime.get()
    try:
        current.run(_run(current, job_id, work))
    finally:
        kit_log.unbind_all()


async def _run(current: Runtime, job_id: int, work: Work) -> None:
    async with current.db.transaction() as session:
        claim = await queue.claim(
            session, job_id, worker=current.worker, lease_seconds=current.settings.job_lease_seconds
        )
    if claim is None:
        return
    kit_log.bind(job=str(claim.public_id), kind=claim.kind, attempt=claim.attempts)
    log.info("job starts")
    run = JobRun(current.db, current.events, claim)
    task = asyncio.ensure_future(work(run, current))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.call_soon_threadsafe(task.cancel)

    watch = current.heartbeat.watch(claim, stop)
    try:
        job = await _outcome(current, claim, task, lambda: watch.cancelled)
    except LeaseLost:
        log.warning("job is no longer ours; nothing more is written")
        return
    finally:
        current.heartbeat.unwatch(watch)
    if job is not None:
        log.info("job ends: %s", job.state)
        await publish_end(current.events, job)


async def _outcome(
    current: Runtime, claim: Claim, task: "asyncio.Future[dict[str, Any]]", cancelled: Callable[[], bool]
) -> Job | None:
    """Waits for the job's code and writes how it ended; None when the job went back to its queue."""
    try:
        result = await task
    except asyncio.CancelledError:
        if cancelled():
            return await _finish(current, claim, JobState.CANCELLED)
        await _put_back(current, claim, delay_seconds=0.0, counts=False)
        return None
    except LeaseLost:
        raise
    except DomainError as error:
        if error.retryable and claim.attempts < claim.max_attempts:
            await _try_later(current, claim, error)
            return None
        return await _finish(current, claim, JobState.FAILED, error_code=error.code, error_message=error.detail)
    except Exception as error:
        # The database or a peer went away in the middle: another attempt finds what was committed.
        if _lost_connection(error) and claim.attempts < claim.max_attempts:
            await _try_later(current, claim, error)
            return None
        return await _fail_unexpectedly(current, claim)
    return await _finish(current, claim, JobState.SUCCESS, result=result)


async def _fail_unexpectedly(current: Runtime, claim: Claim) -> Job:
    log.exception("job fails by an error of ours")
    return await _finish(
        current,
        claim,
        JobState.FAILED,
        error_code="INTERNAL_ERROR",
        error_message=f"The job failed by an error of the service. The log has the details under {claim.public_id}.",
    )


async def _try_later(current: Runtime, claim: Claim, error: Exception) -> None:
    delay = queue.retry_delay_seconds(claim.attempts)
    log.warning("job is tried again in %.0f s: %s", delay, error)
    await _put_back(current, claim, delay_seconds=delay, counts=True)


async def _finish(current: Runtime, claim: Claim, state: JobState, **values: Any) -> Job:
    async def write() -> Job:
        async with current.db.transaction() as session:
            return await queue.finish(session, claim, state, **values)

    return await _persist(write)


async def _put_back(current: Runtime, claim: Claim, *, delay_seconds: float, counts: bool) -> None:
    async def write() -> None:
        async with current.db.transaction() as session:
            await queue.put_back(session, claim, delay_seconds=delay_seconds, counts=counts)

    await _persist(write)


async def _persist(write: Callable[[], Awaitable[T]]) -> T:
    """Tries for some seconds to write a job's end through a database that restarts; after that the lease decides."""
    for attempt in range(1, _END_ATTEMPTS + 1):
        try:
            return await write()
        except Exception as error:
            if attempt == _END_ATTEMPTS or not _lost_connection(error):
                raise
            await asyncio.sleep(0.5 * attempt)
    raise AssertionError("unreachable")


def _lost_connection(error: Exception) -> bool:
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    return isinstance(error, OSError)
