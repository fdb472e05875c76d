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
from tests import llm_server as imitation
from tests.conftest import Tenant
from tests.datasets.lamps import sentences
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
    # Lost at most: what was asked or waited for its place in the queue, a full queue, and the batch of one commit.
    slots = settings.llm_max_concurrency
    assert len(server.requests) <= SECTIONS + 3 * slots + (slots + 1) // 2
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


async def test_a_preview_goes_on_to_other_chunks_until_it_has_enough(
    tenant: Tenant, run_jobs: RunJobs, server: LLMServer
) -> None:
    """One document of tables, of which nothing can be asked, and two with facts: all give what they can."""
    project = await tenant.make_project()
    tables = "\n".join(f"# Table {number}\n\n" + "| 1 | 2 | 3 |\n" * 12 for number in range(8)).encode()
    for name, content in (("a.md", tables), ("b.md", manual(12)), ("c.md", manual(12).replace(b"Ferrule", b"Gasket"))):
        assert (await tenant.upload(project, name, content)).status_code == 201
    body = {"chunk_size_tokens": 64, "chunk_overlap_tokens": 0}
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate", json=body)).json()
    assert (await run_jobs(job["job_id"]))["state"] == "success"
    server.requests.clear()
    answer = await tenant.client.post(f"/projects/{project}/dataset/preview")
    job = await run_jobs(answer.json()["job_id"])
    assert (job["state"], job["result"]["valid"]) == ("success", 10), job["error_message"]
    listed = (await tenant.client.get(f"/projects/{project}/dataset/examples?split=preview")).json()
    by_document = Counter(item["metadata"]["quote"].split()[1] for item in listed["items"])
    assert by_document["Ferrule"] >= 3
    assert by_document["Gasket"] >= 3
    assert all(item["is_valid"] for item in listed["items"])
    assert len(server.requests) <= 20


@pytest.mark.parametrize(("size", "barren", "count"), [(2048, 0, 8), (256, 0, 10), (64, 6, 10)])
async def test_a_preview_of_few_chunks_has_all_examples_too(
    tenant: Tenant, run_jobs: RunJobs, server: LLMServer, size: int, barren: int, count: int
) -> None:
    """Of one chunk, of a few, and of twelve of which a half has nothing to say."""
    project = await tenant.make_project()
    tables = "\n".join(f"# Table {number}\n\n" + "| 1 | 2 | 3 |\n" * 12 for number in range(barren)).encode()
    assert (await tenant.upload(project, "lamps.md", manual(6) + b"\n" + tables)).status_code == 201
    body = {"chunk_size_tokens": size, "chunk_overlap_tokens": 0}
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate", json=body)).json()
    assert (await run_jobs(job["job_id"]))["result"]["chunks"] <= 12
    answer = await tenant.client.post(f"/projects/{project}/dataset/preview", json={"num_examples": count})
    job = await run_jobs(answer.json()["job_id"])
    assert (job["state"], job["result"]["valid"], job["result"]["shortfall"]) == ("success", count, None)
    listed = (await tenant.client.get(f"/projects/{project}/dataset/examples?split=preview")).json()["items"]
    assert len({item["data"]["instruction"] + item["data"]["output"] for item in listed}) == count


async def test_a_preview_that_is_too_small_says_why(tenant: Tenant, run_jobs: RunJobs, server: LLMServer) -> None:
    project = await tenant.make_project()
    assert (await tenant.upload(project, "lamp.md", manual(1))).status_code == 201
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate")).json()
    assert (await run_jobs(job["job_id"]))["state"] == "success"
    job = await run_jobs((await tenant.client.post(f"/projects/{project}/dataset/preview")).json()["job_id"])
    short = job["result"]["shortfall"]
    assert (short["wanted"], short["valid"]) == (10, job["result"]["valid"])
    assert short["reason"].startswith(f"1 chunk gave {short['valid']} of 10 examples. Add documents")


async def test_no_quote_is_on_both_sides_even_where_chunks_overlap(
    tenant: Tenant, run_jobs: RunJobs, server: LLMServer
) -> None:
    """Sections that lie across chunks, and chunks that repeat the end of the one before."""
    facts = [" ".join(sentences(number)) for number in range(100)]
    content = "\n\n".join(f"# Part {at}\n\n{' '.join(facts[at * 5 : at * 5 + 5])}" for at in range(20)).encode()
    project = await tenant.make_project()
    assert (await tenant.upload(project, "lamps.md", content)).status_code == 201
    body = {"chunk_size_tokens": 128, "chunk_overlap_tokens": 60}
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate", json=body)).json()
    assert (await run_jobs(job["job_id"]))["state"] == "success"
    job = await run_jobs(await _start(tenant, project, num_examples_target=120))
    assert job["state"] == "success", job["error_message"]
    listed = (await tenant.client.get(f"/projects/{project}/dataset/examples?limit=500&is_valid=true")).json()["items"]
    sides: dict[str, set[str]] = {}
    for item in listed:
        sides.setdefault(item["metadata"]["quote"], set()).add(item["split"])
    assert [quote for quote, splits in sides.items() if len(splits) > 1] == []
    assert listed[0]["id"]
    assert job["result"]["eval"] >= 1
    found = job["result"]["leakage"]
    assert found["held_out"] == job["result"]["eval"]
    assert found["same_quote"] == 0
    assert found["leaked"] == 0 or "worded much like" in found["explanation"]


async def test_a_single_chunk_is_divided_between_its_quotes(
    tenant: Tenant, run_jobs: RunJobs, server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions come in rounds: the last ones are about the first sentences again."""
    made = imitation._free

    def twice(prompt: str, most: int, unstorable: bool) -> list[dict[str, str]]:
        once = made(prompt, most, unstorable)
        again = [
            {**one, "instruction": f"Please tell in other words: which {number * 7} things are said of it in Osterby?"}
            for number, one in enumerate(once, 1)
        ]
        return [*once[: most // 2], *again[: most // 2]]

    monkeypatch.setattr(imitation, "_free", twice)
    project = await tenant.make_project()
    assert (await tenant.upload(project, "lamps.txt", " ".join(sentences(3)).encode())).status_code == 201
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate")).json()
    assert (await run_jobs(job["job_id"]))["state"] == "success"
    job = await run_jobs(await _start(tenant, project, num_examples_target=6))
    assert job["state"] == "success", job["error_message"]
    listed = (await tenant.client.get(f"/projects/{project}/dataset/examples?is_valid=true")).json()["items"]
    sides: dict[str, list[str]] = {}
    for item in listed:
        sides.setdefault(item["metadata"]["quote"], []).append(item["split"])
    assert max(map(len, sides.values())) > 1, "some sentence is asked about twice"
    assert [splits for splits in sides.values() if len(set(splits)) > 1] == []
    assert job["result"]["leakage"]["same_quote"] == 0
    assert job["result"]["eval"] >= 1


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
