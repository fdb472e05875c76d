"""Whose turn it is in a queue that tenants share: who has had the least of it lately, by the weight of their plan.

A message of such a queue says only that there is something to do; which job runs is decided when a worker is free.
"""

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs.models import Job
from backend.jobs.states import JobState

FAIR_QUEUES: Final = frozenset({"gpu"})
# Use that is older than this is forgotten: an hour in the morning is no reason to wait in the evening.
WINDOW_SECONDS: Final = 3600
_SAMPLE: Final = 50

# Seconds that each user's jobs took of a queue within the window, those that run now included. A job that was put back
# and started again counts from its first start, which errs against the one who had it.
_USED: Final = """
    SELECT user_id, sum(extract(epoch FROM coalesce(finished_at, clock_timestamp()) -
        greatest(started_at, clock_timestamp() - make_interval(secs => :window)))) AS seconds,
        count(*) FILTER (WHERE state = 'running') AS running
    FROM jobs
    WHERE queue = :queue AND started_at IS NOT NULL
        AND coalesce(finished_at, clock_timestamp()) > clock_timestamp() - make_interval(secs => :window)
    GROUP BY user_id
"""
_NEXT: Final = text(f"""
    WITH used AS ({_USED})
    SELECT j.id, j.kind FROM jobs j LEFT JOIN used u ON u.user_id = j.user_id
    WHERE j.queue = :queue AND j.state = 'queued' AND j.cancel_requested_at IS NULL
        AND (j.available_at IS NULL OR j.available_at <= clock_timestamp())
        AND (j.max_concurrent IS NULL OR coalesce(u.running, 0) < j.max_concurrent)
    ORDER BY coalesce(u.seconds, 0) / j.weight, j.id
    LIMIT 1
""")  # noqa: S608  (of constants alone)
_WAITING: Final = text(f"""
    WITH used AS ({_USED})
    SELECT j.id, j.user_id, j.kind, j.weight, coalesce(u.seconds, 0) AS used_seconds
    FROM jobs j LEFT JOIN used u ON u.user_id = j.user_id
    WHERE j.queue = :queue AND j.state = 'queued' AND j.cancel_requested_at IS NULL ORDER BY j.id LIMIT 2000
""")  # noqa: S608  (of constants alone)
_RUNNING: Final = text("""
    SELECT kind, extract(epoch FROM clock_timestamp() - started_at) AS elapsed_seconds, progress_pct
    FROM jobs WHERE queue = :queue AND state = 'running'
""")
_LATELY: Final = text("""
    SELECT kind, extract(epoch FROM finished_at - started_at) AS seconds FROM jobs
    WHERE queue = :queue AND state = 'success' AND started_at IS NOT NULL ORDER BY finished_at DESC LIMIT :sample
""")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued job, with what its user used lately (seconds)."""

    id: int
    user_id: int
    seconds: float
    weight: int
    used_seconds: float


@dataclass(frozen=True, slots=True)
class Place:
    """`position` 1 is next. `starts_in_seconds` is None while nobody knows how long such jobs take."""

    position: int
    starts_in_seconds: float | None


async def find_next(session: AsyncSession, queue: str) -> "Row[tuple[int, str]] | None":
    """(id, kind) of the job whose turn it is; None when nothing may run now."""
    return (await session.execute(_NEXT, {"queue": queue, "window": WINDOW_SECONDS})).one_or_none()


async def place_of(session: AsyncSession, job: Job) -> Place | None:
    """Where a job stands; None for one that does not wait, or waits in a queue without turns."""
    if job.state != JobState.QUEUED or job.queue not in FAIR_QUEUES:
        return None
    return (await places(session, job.queue)).get(job.id)


async def places(session: AsyncSession, queue: str) -> dict[int, Place]:
    """Where each queued job stands, by job id, and when it will probably start."""
    values = {"queue": queue, "window": WINDOW_SECONDS}
    waiting = (await session.execute(_WAITING, values)).all()
    if not waiting:
        return {}
    running = (await session.execute(_RUNNING, {"queue": queue})).all()
    lately = (await session.execute(_LATELY, {"queue": queue, "sample": _SAMPLE})).all()
    seconds = usual_seconds([(row.kind, float(row.seconds)) for row in lately])
    known = [seconds.get(row.kind) for row in running]
    free_in = [
        remaining_seconds(float(row.elapsed_seconds), float(row.progress_pct), usual)
        for row, usual in zip(running, known, strict=True)
    ]
    jobs = [
        Waiting(row.id, row.user_id, seconds.get(row.kind, 0.0), row.weight, float(row.used_seconds)) for row in waiting
    ]
    order = simulate(jobs, free_in or [0.0])
    is_known = all(row.kind in seconds for row in waiting) and None not in known
    return {
        job_id: Place(position, starts if is_known else None)
        for position, (job_id, starts) in enumerate(order, start=1)
    }


def simulate(waiting: Sequence[Waiting], free_in: Sequence[float]) -> list[tuple[int, float]]:
    """(job id, seconds until it starts) in the order in which workers would take them.

    `free_in` has one figure for each worker: the seconds until it is free. A job counts against its user from the
    moment it is taken, as `find_next` would see it.
    """
    workers = list(free_in)
    heapq.heapify(workers)
    used = {job.user_id: job.used_seconds for job in waiting}
    left = list(waiting)
    order: list[tuple[int, float]] = []
    while left:
        job = min(left, key=lambda item: (used[item.user_id] / item.weight, item.id))
        left.remove(job)
        starts = heapq.heappop(workers)
        order.append((job.id, starts))
        # A job of no known length still takes its turn.
        used[job.user_id] += job.seconds or 1.0
        heapq.heappush(workers, starts + job.seconds)
    return order


def usual_seconds(lately: Sequence[tuple[str, float]]) -> Mapping[str, float]:
    """The median length of each kind of job."""
    by_kind: dict[str, list[float]] = {}
    for kind, seconds in lately:
        by_kind.setdefault(kind, []).append(seconds)
    return {kind: statistics.median(found) for kind, found in by_kind.items()}


def remaining_seconds(elapsed: float, progress_pct: float, usual: float | None) -> float:
    """What is left of a running job: by its own progress once that says something, else by what is usual."""
    if progress_pct >= 10:
        return elapsed * (100 - progress_pct) / progress_pct
    return max((usual or 0.0) - elapsed, 0.0)
