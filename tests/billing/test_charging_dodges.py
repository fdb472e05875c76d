"""Ways to have work done for less than it costs, and that none of them works."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.exc import DBAPIError

from backend.billing import ledger
from backend.contents.models import Chunk, Content
from backend.datasets.models import ChunkMark
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.projects.models import Project
from tests.billing.test_charging import balance, nothing_is_wrong, number_of
from tests.conftest import Tenant
from tests.datasets.lamps import make_project, manual, rechunk, start
from tests.llm_server import LLMServer

RunJobs = Callable[[str], Awaitable[dict[str, Any]]]


@pytest.fixture
def priced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(settings, "free_characters", 10_000)
    return settings


@pytest.fixture
async def server(llm_server: LLMServer) -> AsyncIterator[LLMServer]:
    llm_server.requests.clear()
    yield llm_server
    llm_server.mode, llm_server.delay_seconds = "good", 0.0


async def asked(db: Database, job: str) -> int:
    """How many chunks the job has had answered."""
    async with db.transaction() as session:
        marks = select(func.count()).select_from(ChunkMark).join(Job, Job.id == ChunkMark.job_id)
        return int(await session.scalar(marks.where(Job.public_id == UUID(job))) or 0)


async def remove_contents(db: Database, user: int) -> None:
    """What DELETE /api/contents/{id} does; its caller is told to try again when the worker was in the way."""
    mine = select(Project.id).where(Project.user_id == user)
    while True:
        with suppress(DBAPIError):
            async with db.transaction() as session:
                await session.execute(delete(Content).where(Content.project_id.in_(mine)))
                assert await session.scalar(select(func.count()).where(Chunk.project_id.in_(mine))) == 0
                return


async def run_until(db: Database, run_jobs: RunJobs, server: LLMServer, job: str, chunks: int) -> asyncio.Future[Any]:
    """Starts the job, and returns while it runs and has had so many chunks answered."""
    server.delay_seconds = 0.2
    running = asyncio.ensure_future(run_jobs(job))
    while await asked(db, job) < chunks:
        assert not running.done(), running.result()
        await asyncio.sleep(0.02)
    return running


async def test_deleting_the_documents_while_they_are_read(
    db: Database, tenant: Tenant, run_jobs: RunJobs, server: LLMServer, priced: Settings
) -> None:
    user = await number_of(tenant)
    job = await start(tenant, await make_project(tenant, run_jobs), num_examples_target=24)
    held = (await balance(db, user)).held
    running = await run_until(db, run_jobs, server, job, 4)
    await remove_contents(db, user)
    server.delay_seconds = 0.0
    assert (await running)["state"] == "success"
    found = await balance(db, user)
    assert (found.held, found.used) == (0, held)
    await nothing_is_wrong(db, user)


@pytest.mark.parametrize("deletes", [False, True])
async def test_cancelling_what_is_added_to_a_dataset(
    db: Database, tenant: Tenant, run_jobs: RunJobs, server: LLMServer, priced: Settings, deletes: bool
) -> None:
    """The dataset stays ready with what came so far, so that is paid; the rest of the hold goes back."""
    user = await number_of(tenant)
    project = await make_project(tenant, run_jobs, manual(6))
    assert (await run_jobs(await start(tenant, project, num_examples_target=6)))["state"] == "success"
    before = (await balance(db, user)).used
    assert (await tenant.upload(project, "more.md", manual(20, start=40))).status_code == 201
    await rechunk(tenant, project, run_jobs)
    job = await start(tenant, project, only_changed=True)
    held = (await balance(db, user)).held
    running = await run_until(db, run_jobs, server, job, 5)
    # A worker sees the cancel within two seconds.
    server.delay_seconds = 5.0
    if deletes:
        await remove_contents(db, user)
    assert (await tenant.client.post(f"/jobs/{job}/cancel")).status_code == 200
    assert (await running)["state"] == "cancelled"
    server.delay_seconds = 0.0
    found = await balance(db, user)
    charged = found.used - before
    assert found.held == 0
    assert charged == held if deletes else 0 < charged < held
    await nothing_is_wrong(db, user)
    if deletes:
        return
    # The rest is paid when it is asked, and nothing twice.
    rest = await run_jobs(await start(tenant, project, only_changed=True))
    assert rest["state"] == "success", rest["error_message"]
    assert (await balance(db, user)).used - before == held
    assert (await balance(db, user)).posted == ledger.Balance(posted=10_000 - before - held).posted
