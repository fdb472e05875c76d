"""Workers and Redis are killed under load: no job is lost, none has its effect twice, each is rescued in a minute."""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from backend.embedded import processes
from backend.jobs import service
from backend.jobs.events import EventLog
from backend.jobs.states import JobState
from backend.kit import redis as kit_redis
from tests.conftest import clone_database
from tests.faults.plant import Plant, patience
from tests.faults.storm import storm

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(not processes.LINUX, reason="finds a worker's processes in /proc"),
]
RESCUE_SECONDS = 60.0


async def database() -> str:
    return await clone_database(f"faults_{secrets.token_hex(4)}")


@pytest.mark.parametrize(("aof", "jobs", "redis_kills"), [(True, 300, 3), (False, 250, 3)], ids=["aof", "no aof"])
async def test_no_job_is_lost_and_none_has_its_effect_twice(
    tmp_path: Path, aof: bool, jobs: int, redis_kills: int
) -> None:
    outcome = await storm(await database(), tmp_path / "plant", jobs=jobs, redis_kills=redis_kills, aof=aof)
    print(outcome)
    assert outcome.lost == []
    assert outcome.failed == []
    assert outcome.doubled == []
    assert outcome.worker_kills >= 5
    assert outcome.redis_kills == redis_kills
    assert outcome.rescues, "nothing was hit: the test proves nothing"
    assert outcome.longest_rescue_seconds <= RESCUE_SECONDS
    assert outcome.slowest_enqueue_seconds < 3.0


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    async with Plant(await database(), tmp_path / "plant", aof=True) as made:
        yield made


async def eventually(condition: Callable[[], Awaitable[Any]], seconds: float) -> float:
    """The seconds until it holds."""
    for spent in patience(seconds):
        if await condition():
            return spent
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


async def test_zombies_write_nothing_even_when_frozen_inside_a_transaction(plant: Plant) -> None:
    for name in ("zombie", "control", "beat"):
        plant.start(name)
    frozen = await plant.enqueue(seconds=4, freeze=True)
    stopped = await plant.enqueue(seconds=4)
    both = [frozen, stopped]

    async def started(fence: int) -> bool:
        rows = await plant.rows(
            "SELECT DISTINCT job_id FROM starts WHERE job_id = ANY(:jobs) AND fence >= :fence", jobs=both, fence=fence
        )
        return len(rows) == 2

    await eventually(lambda: started(1), 30)
    await asyncio.sleep(0.5)
    plant.signal_group("zombie", signal.SIGSTOP)
    await asyncio.sleep(0.5)  # what was on its way has arrived
    ((last,),) = await plant.rows("SELECT clock_timestamp()")
    locked = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
    assert await plant.rows(locked), "the frozen one must hold its lock"
    plant.start("heir")
    assert await eventually(lambda: started(2), RESCUE_SECONDS) < RESCUE_SECONDS
    plant.signal_group("zombie", signal.SIGCONT)

    async def over() -> bool:
        return all([(await plant.job(job)).state == JobState.SUCCESS for job in both])

    await eventually(over, 30)
    await asyncio.sleep(6)  # the zombies would have ended by now
    for table in ("starts", "steps", "effects"):
        assert await plant.rows(f"SELECT * FROM {table} WHERE fence = 1 AND at > :last", last=last) == []
    assert await plant.rows("SELECT * FROM steps WHERE job_id = :job AND fence = 1", job=frozen) == []
    for table in ("effects", "endings"):
        assert [
            tuple(row) for row in await plant.rows(f"SELECT job_id, count(*) FROM {table} GROUP BY 1 ORDER BY 1")
        ] == [
            (frozen, 1),
            (stopped, 1),
        ]


async def test_a_worker_told_to_stop_hands_its_job_over_at_once(plant: Plant) -> None:
    for name in ("first", "control", "beat"):
        plant.start(name)
    job = await plant.enqueue(seconds=8)

    async def runs(fence: int) -> list[Any]:
        return bool(
            await plant.rows("SELECT 1 FROM starts WHERE job_id = :job AND fence = :fence", job=job, fence=fence)
        )

    await eventually(lambda: runs(1), 30)
    plant.start("second")
    asked_at = time.monotonic()
    first = plant.processes["first"]
    first.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait, 10) == 0
    assert time.monotonic() - asked_at < 5
    assert await eventually(lambda: runs(2), 20) < 20
    assert (await plant.job(job)).attempts == 1


async def test_a_worker_whose_job_blocks_it_is_cancelled_within_two_seconds(plant: Plant) -> None:
    plant.start("worker")
    job = await plant.enqueue(block=15)

    async def in_state(state: JobState) -> bool:
        return (await plant.job(job)).state == state

    await eventually(lambda: in_state(JobState.RUNNING), 30)
    await asyncio.sleep(0.5)
    redis = kit_redis.connect(plant.valkey.url())
    async with plant.db.transaction() as session:
        await service.cancel(session, EventLog(redis), await plant.job(job))
    await redis.aclose()
    assert await eventually(lambda: in_state(JobState.CANCELLED), 5) < 2.0
