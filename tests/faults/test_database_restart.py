"""PostgreSQL is killed under running jobs and comes back: they go on or run again, and have their effect once."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backend.embedded.child import wait_ready
from backend.embedded.servers import Servers, temporary_servers
from backend.jobs.states import JobState
from backend.kit import migrations
from tests.faults.plant import Plant, patience

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    with temporary_servers() as made:
        await asyncio.to_thread(migrations.upgrade, made.database_url)
        yield made


async def test_jobs_survive_a_database_that_is_killed(servers: Servers, tmp_path: Path) -> None:
    async with Plant(servers.database_url, tmp_path / "plant", aof=True) as plant:
        for name in ("worker", "control", "beat"):
            plant.start(name)
        # The one writes all the time and meets the outage; the other sleeps through it and must not lose its run.
        writing, silent = await plant.enqueue(seconds=12), await plant.enqueue(block=12)
        for _ in patience(40):
            if len(await plant.rows("SELECT 1 FROM starts")) == 2:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        assert servers.postgres.process is not None
        servers.postgres.process.send_signal(signal.SIGKILL)
        servers.postgres.collect()
        await asyncio.sleep(3)
        servers.postgres.launch()
        wait_ready([servers.postgres], 30)
        back_at = time.monotonic()
        for spent in patience(90):
            rows = await plant.rows("SELECT id FROM jobs WHERE state = :state", state=JobState.SUCCESS)
            if len(rows) == 2:
                break
            assert spent < 80, plant.logs()
            await asyncio.sleep(0.2)
        assert time.monotonic() - back_at < 60
        counts = await plant.rows("SELECT job_id, count(*) FROM effects GROUP BY 1 ORDER BY 1")
        assert [tuple(row) for row in counts] == [(writing, 1), (silent, 1)]
        assert (await plant.job(silent)).attempts == 1
        assert (await plant.job(writing)).attempts == 2
