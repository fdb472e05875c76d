"""Claims a job's row, runs its code, and records the end: the only way in which a job runs."""

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from celery import current_app, current_task
from sqlalchemy.exc import DBAPIError

from backend.jobs import queries, queue, turns
from backend.jobs.errors import LeaseLost
from backend.jobs.models import Job
from backend.jobs.queue import Claim
from backend.jobs.running import JobRun
from backend.jobs.service import publish_end
from backend.jobs.states import JobState
from backend.kit import log as kit_log
from backend.kit.errors import DomainError
from backend.kit.text import storable_json
from celery_app import runtime
from celery_app.heartbeat import Reason, Watch
from celery_app.runtime import Runtime

log = logging.getLogger(__name__)

# What a job's code is: it gets its run and the process's runtime, and returns the summary to be shown.
Work = Callable[[JobRun, Runtime], Awaitable[dict[str, Any]]]

PERSIST_SECONDS = 30.0
# Until the wrong worker is asked again, while the right one may be busy.
_ELSEWHERE_SECONDS = 30.0
_is_chosen: ContextVar[bool] = ContextVar("is_chosen", default=False)
_UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
# SQLSTATE: connection lost, too many connections, shutdown, crash, starting up, ended for idling in a transaction.
_AWAY_STATES = ("08", "53300", "57P01", "57P02", "57P03", "25P03")
T = TypeVar("T")


def run_job(job_id: int, work: Work) -> None:
    """Runs one job in this worker process; returns quietly when the job is not to be run here and now.

    By a message of a queue that takes turns, the job is run whose turn it is, which may be another one.
    """
    current = runtime.get()
    chosen = _turn(current, job_id)
    if chosen is not None and chosen[0] != job_id:
        token = _is_chosen.set(True)
        try:
            current_app.tasks[chosen[1]].run(chosen[0])
        finally:
            _is_chosen.reset(token)
        return
    try:
        current.run(_run(current, job_id, work))
    finally:
        kit_log.unbind_all()


def _turn(current: Runtime, job_id: int) -> tuple[int, str] | None:
    """(id, kind) of the job to run instead; None for the one that was asked for."""
    if _is_chosen.get() or not current_task or current_task.request.called_directly:
        return None
    queue_name = (current_task.request.delivery_info or {}).get("routing_key")
    if queue_name not in turns.FAIR_QUEUES:
        return None

    async def find() -> tuple[int, str] | None:
        async with current.db.transaction() as session:
            found = await turns.find_next(session, queue_name)
        return None if found is None else (found.id, found.kind)

    return current.run(find())


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
    watch = current.heartbeat.watch(claim, task)
    try:
        job = await _outcome(current, claim, task, watch)
    except LeaseLost:
        log.warning("job is no longer ours; nothing more is written")
        return
    finally:
        current.heartbeat.unwatch(watch)
    if job is not None:
        log.info("job ends: %s", job.state)
        await publish_end(current.events, job)


async def _outcome(current: Runtime, claim: Claim, task: "asyncio.Future[dict[str, Any]]", watch: Watch) -> Job | None:
    """Waits for the job's code and writes how it ended; None when the job went back to its queue."""
    try:
        result = await task
    except LeaseLost:
        raise
    except (Exception, asyncio.CancelledError) as error:
        # Whatever a run says that was told to end: it did not fail by itself.
        if watch.reason is Reason.CANCELLED:
            return await _finish(current, claim, JobState.CANCELLED)
        if watch.reason is not None or _told_to_end():
            return await _put_back(
                current,
                claim,
                delay_seconds=0.0,
                counts=False,
                message="The worker was stopped. Another one takes the job up again.",
            )
        return await _failed(current, claim, _root(error))
    return await _finish(current, claim, JobState.SUCCESS, result=result)


async def _failed(current: Runtime, claim: Claim, error: BaseException) -> Job | None:
    if isinstance(error, LeaseLost):
        raise error
    domain = error if isinstance(error, DomainError) else None
    # The database or a peer went away in the middle: another attempt finds what was committed.
    if domain.retryable if domain else _lost_connection(error):
        reason = domain.detail if domain is not None else "A server that the job needs is away."
        if domain is not None and not domain.costs_attempt:
            return await _try_later(current, claim, _ELSEWHERE_SECONDS, reason, counts=False)
        attempts = await _attempts(current, claim)
        if attempts < claim.max_attempts:
            delay = queue.retry_delay_seconds(attempts)
            reason = f"Attempt {attempts} of {claim.max_attempts} failed; the next one is in {delay:.0f} s. {reason}"
            return await _try_later(current, claim, delay, reason, counts=True)
    if domain is not None:
        return await _finish(
            current,
            claim,
            JobState.FAILED,
            error_code=domain.code,
            error_message=domain.detail,
            error_context=storable_json(domain.context),
        )
    log.error("job fails by an error of ours", exc_info=error)
    return await _finish(
        current,
        claim,
        JobState.FAILED,
        error_code="INTERNAL_ERROR",
        error_message=f"The job failed by an error of the service. The log has the details under {claim.public_id}.",
    )


async def _try_later(current: Runtime, claim: Claim, delay: float, message: str, *, counts: bool) -> Job | None:
    log.warning("job is tried again in %.0f s: %s", delay, message)
    ended = await _put_back(current, claim, delay_seconds=delay, counts=counts, message=message)
    if ended is None:
        await current.events.publish(claim.public_id, "log", {"message": message})
    return ended


async def _attempts(current: Runtime, claim: Claim) -> int:
    async def read() -> int:
        async with current.db.transaction() as session:
            return await queries.count_attempts(session, claim.id)

    return await _persist(read)


async def _finish(current: Runtime, claim: Claim, state: JobState, **values: Any) -> Job:
    async def write() -> Job:
        async with current.db.transaction() as session:
            return await queue.finish(session, claim, state, **values)

    return await _persist(write)


async def _put_back(current: Runtime, claim: Claim, *, delay_seconds: float, counts: bool, message: str) -> Job | None:
    async def write() -> Job | None:
        async with current.db.transaction() as session:
            return await queue.put_back(session, claim, delay_seconds=delay_seconds, counts=counts, message=message)

    return await _persist(write)


async def _persist(write: Callable[[], Awaitable[T]]) -> T:
    """Tries to write a job's end through a database that restarts; after PERSIST_SECONDS the lease decides."""
    deadline = time.monotonic() + PERSIST_SECONDS
    pause = 0.25
    while True:
        try:
            return await write()
        except Exception as error:
            if time.monotonic() + pause > deadline or not _lost_connection(error):
                raise
            log.warning("the job's end is not written yet: %r", error)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 2.0)


def _told_to_end() -> bool:
    """Whether this very task is being cancelled, as by Ctrl-C in a worker without a pool."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


def _root(error: BaseException) -> BaseException:
    """What a task group wraps: a lost lease or an expected error first, since the others follow from it."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    roots = [_root(inner) for inner in error.exceptions]
    for kind in (LeaseLost, DomainError):
        for root in roots:
            if isinstance(root, kind):
                return root
    return roots[0]


def _lost_connection(error: BaseException | None) -> bool:
    """Whether the database or a peer went away, or is not back yet."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        if isinstance(error, OSError) and (error.errno is None or error.errno in _UNREACHABLE):
            return True
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        if str(getattr(error, "sqlstate", None) or "").startswith(_AWAY_STATES):
            return True
        error = error.orig if isinstance(error, DBAPIError) else error.__cause__
    return False
