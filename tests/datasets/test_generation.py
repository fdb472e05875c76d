"""The generation job: what it keeps, what it refuses, and what a killed worker costs."""

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import func, select, update

from backend.datasets.models import ChunkMark, Example
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.kit.db import Database
from tests.conftest import Tenant
from tests.llm_server import LLMServer

RunJobs = Callable[[str], Awaitable[dict[str, Any]]]
SECTIONS = 24
RUN_TASK = """
import sys
from celery_app.app import app
app.loader.import_default_modules()
app.tasks["dataset_generate"].run(int(sys.argv[1]))
"""


def manual(sections: int = SECTIONS) -> bytes:
    """A section per product, each with facts of its own."""
    parts = [
        f"# Lamp {number}\n\nThe Ferrule {number} lamp was first sold in Osterby in {1900 + number}. "
        f"The Ferrule {number} lamp weighs {400 + number} grams with its glass shade.\n"
        for number in range(sections)
    ]
    return "\n".join(parts).encode()


@pytest.fixture
async def server(llm_server: LLMServer) -> AsyncIterator[LLMServer]:
    llm_server.requests.clear()
    yield llm_server
    llm_server.mode, llm_server.delay_seconds = "good", 0.0


@pytest.fixture
async def project(tenant: Tenant, run_jobs: RunJobs) -> str:
    """A project whose documents are chunked, one chunk per section."""
    project = await tenant.make_project()
    assert (await tenant.upload(project, "lamps.md", manual())).status_code == 201
    body = {"chunk_size_tokens": 64, "chunk_overlap_tokens": 0}
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate", json=body)).json()
    assert (await run_jobs(job["job_id"]))["state"] == "success"
    return project


async def _start(tenant: Tenant, project: str, **body: Any) -> str:
    answer = await tenant.client.post(f"/projects/{project}/dataset/generate", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


async def test_examples_are_grounded_split_and_counted(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer
) -> None:
    job = await run_jobs(await _start(tenant, project, num_examples_target=40))
    assert job["state"] == "success", job["error_message"]
    listed = (await tenant.client.get(f"/projects/{project}/dataset/examples?limit=500")).json()
    assert listed["stats"]["train"] + listed["stats"]["eval"] == listed["stats"]["valid"] == job["result"]["valid"]
    assert listed["stats"]["valid"] >= 38
    assert 1 <= listed["stats"]["eval"] <= 6
    for item in listed["items"]:
        assert item["metadata"]["quote"] in manual().decode()
    # A section is on one side only: no held-out fact has a neighbour in the training set.
    sides = {(item["metadata"]["quote"].split()[2], item["split"]) for item in listed["items"]}
    assert len({lamp for lamp, _ in sides}) == len(sides)
    profile = (await tenant.client.get("/api/users/me")).json()
    characters = (await tenant.client.get(f"/projects/{project}/files")).json()["files"][0]["character_count"]
    assert profile["total_characters_used"] == characters


async def test_a_second_run_leaves_the_first_dataset_as_it_was(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer, db: Database
) -> None:
    first = await run_jobs(await _start(tenant, project, num_examples_target=10))
    second = await run_jobs(await _start(tenant, project, num_examples_target=10))
    assert first["params"]["dataset_id"] != second["params"]["dataset_id"]
    async with db.transaction() as session:
        counts = await session.execute(
            select(Example.dataset_id, func.count())
            .where(Example.dataset_id.in_([first["params"]["dataset_id"], second["params"]["dataset_id"]]))
            .group_by(Example.dataset_id)
        )
        assert sorted(count for _, count in counts.all()) == [10, 10]


async def test_a_killed_worker_goes_on_where_it_stopped(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer, db: Database, settings: Settings
) -> None:
    """Only the answers that were under way may be asked for again; what is committed is never paid for twice."""
    server.delay_seconds = 0.3
    public_id = await _start(tenant, project, num_examples_target=SECTIONS)
    async with db.transaction() as session:
        job_id = (await session.scalars(select(Job.id).where(Job.public_id == public_id))).one()
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", RUN_TASK, str(job_id))
    try:
        while await _marks(db, job_id) < 8:
            assert worker.returncode is None
            await asyncio.sleep(0.02)
    finally:
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
    # What the killed process had sent is still to be read by the server, and its last commit to be ended by PostgreSQL.
    await asyncio.sleep(1.0)
    kept = await _marks(db, job_id)
    assert kept < SECTIONS
    async with db.transaction() as session:
        await session.execute(update(Job).where(Job.id == job_id).values(state="queued", lease_until=None))
    server.delay_seconds = 0.0
    asked_before = len(server.requests)
    job = await run_jobs(public_id)
    assert (job["state"], job["attempts"]) == ("success", 2)
    assert len(server.requests) - asked_before == SECTIONS - kept
    # In flight at the kill: at most one request per slot, and as many answers that waited for the commit.
    assert len(server.requests) <= SECTIONS + 2 * settings.llm_max_concurrency
    async with db.transaction() as session:
        made = select(Example.output).join(ChunkMark, ChunkMark.chunk_id == Example.chunk_id)
        outputs = await session.scalars(made.where(ChunkMark.job_id == job_id))
        assert max(Counter(outputs.all()).values()) == 1
    profile = (await tenant.client.get("/api/users/me")).json()
    files = (await tenant.client.get(f"/projects/{project}/files")).json()["files"]
    assert profile["total_characters_used"] == files[0]["character_count"]


async def test_a_preview_is_spread_and_replaced(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer
) -> None:
    for count in (6, 4):
        answer = await tenant.client.post(f"/projects/{project}/dataset/preview", json={"num_examples": count})
        job = await run_jobs(answer.json()["job_id"])
        assert job["state"] == "success"
        listed = (await tenant.client.get(f"/projects/{project}/dataset/examples?split=preview")).json()
        lamps = [int(item["metadata"]["quote"].split()[2]) for item in listed["items"]]
        assert len(lamps) == count
        assert max(lamps) - min(lamps) > SECTIONS // 2
    assert listed["stats"]["total"] == 0
    assert listed["stats"]["preview"] == 4


async def test_a_deleted_file_takes_its_examples_out_of_the_run(
    tenant: Tenant, project: str, run_jobs: RunJobs, server: LLMServer
) -> None:
    job = await _start(tenant, project, num_examples_target=10)
    files = (await tenant.client.get(f"/projects/{project}/files")).json()["files"]
    assert (await tenant.client.delete(f"/projects/{project}/files/{files[0]['id']}")).status_code == 204
    ended = await run_jobs(job)
    assert (ended["state"], ended["error_code"]) == ("failed", "NO_CHUNKS")


async def _marks(db: Database, job_id: int) -> int:
    async with db.transaction() as session:
        return int(
            await session.scalar(select(func.count()).select_from(ChunkMark).where(ChunkMark.job_id == job_id)) or 0
        )
