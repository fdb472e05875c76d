"""Generating only what changed, taking along what people brought, and staying clear of reference files."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select

from backend.contents.models import Chunk, Content
from backend.contents.records.row import Row
from backend.datasets.fingerprints import fingerprint
from backend.datasets.models import Dataset, DatasetVersion, Example
from backend.kit.db import Database
from backend.storage import Storage
from tests.conftest import Tenant
from tests.datasets.lamps import (
    SECTIONS,
    RunJobs,
    canary,
    examples,
    id_of,
    make_project,
    manual,
    rechunk,
    sentences,
    start,
)
from tests.llm_server import LLMServer

RUN_TASK = """
import sys
from celery_app.app import app
app.loader.import_default_modules()
app.tasks["dataset_generate"].run(int(sys.argv[1]))
"""


@pytest.fixture
async def server(llm_server: LLMServer) -> AsyncIterator[LLMServer]:
    llm_server.requests.clear()
    yield llm_server
    llm_server.mode, llm_server.delay_seconds = "good", 0.0


async def test_only_new_documents_are_asked_about(
    tenant: Tenant, run_jobs: RunJobs, server: LLMServer, db: Database
) -> None:
    project = await make_project(tenant, run_jobs)
    first = await run_jobs(await start(tenant, project, num_examples_target=SECTIONS))
    before = {item["id"]: item for item in await examples(tenant, project)}
    assert (await tenant.upload(project, "more.md", manual(6, start=100))).status_code == 201
    await rechunk(tenant, project, run_jobs)
    server.requests.clear()
    job = await run_jobs(await start(tenant, project, only_changed=True))
    assert job["state"] == "success", job["error_message"]
    assert job["params"]["dataset_id"] == first["params"]["dataset_id"]
    assert job["result"]["changed_chunks"] == 6
    assert len(server.requests) == 6
    assert all("Lamp-10" in str(request["messages"]) for request in server.requests)
    after = {item["id"]: item for item in await examples(tenant, project)}
    assert {key: after[key] for key in before} == before
    assert len(after) - len(before) == 6
    async with db.transaction() as session:
        dataset = await session.get_one(Dataset, first["params"]["dataset_id"])
        assert (dataset.status, dataset.version) == ("ready", 2)
        versions = (await session.scalars(select(DatasetVersion).where(DatasetVersion.dataset_id == dataset.id))).all()
        assert [version.train_count + version.eval_count for version in versions] == [len(before)]


async def test_what_lost_its_source_is_no_longer_valid_and_is_replaced(
    tenant: Tenant, run_jobs: RunJobs, server: LLMServer
) -> None:
    project = await make_project(tenant, run_jobs, manual(6))
    await run_jobs(await start(tenant, project, num_examples_target=12))
    kept = next(item for item in await examples(tenant, project) if "Lamp-2 " in item["metadata"]["quote"])
    edit = {"data": {"output": "Edited by a person, and so it stays."}}
    answer = await tenant.client.patch(f"/projects/{project}/dataset/examples/{kept['id']}", json=edit)
    assert answer.status_code == 200, answer.text
    files = (await tenant.client.get(f"/projects/{project}/files")).json()["files"]
    assert (await tenant.client.delete(f"/projects/{project}/files/{files[0]['id']}")).status_code == 204
    changed = manual(6).replace(b"Lamp-2", b"Torch-2").replace(b"Lamp-3", b"Torch-3")
    assert (await tenant.upload(project, "lamps.md", changed)).status_code == 201
    await rechunk(tenant, project, run_jobs)
    job = await run_jobs(await start(tenant, project, only_changed=True, num_examples_target=12))
    assert job["state"] == "success", job["error_message"]
    listed = await examples(tenant, project)
    stale = [item for item in listed if item["invalid_reason"] == "source_changed"]
    assert len(stale) == 11
    assert kept["id"] not in {item["id"] for item in stale}
    valid = [item for item in listed if item["is_valid"]]
    assert 0.95 * 12 <= len(valid) <= 1.05 * 12
    assert any("Torch-3" in item["data"]["output"] for item in valid)


async def test_nothing_changed_is_a_success_that_says_so(tenant: Tenant, run_jobs: RunJobs, server: LLMServer) -> None:
    project = await make_project(tenant, run_jobs)
    # Fewer examples than chunks: those that gave none are not new for all that.
    await run_jobs(await start(tenant, project, num_examples_target=5))
    before = await examples(tenant, project)
    server.requests.clear()
    job = await run_jobs(await start(tenant, project, only_changed=True))
    assert job["state"] == "success"
    assert job["result"]["changed_chunks"] == 0
    assert "Nothing has changed" in job["result"]["message"]
    assert server.requests == []
    assert await examples(tenant, project) == before


async def test_a_failure_over_the_changes_leaves_the_dataset_ready(
    tenant: Tenant, run_jobs: RunJobs, server: LLMServer, db: Database
) -> None:
    project = await make_project(tenant, run_jobs, manual(4))
    first = await run_jobs(await start(tenant, project, num_examples_target=8))
    assert (await tenant.upload(project, "more.md", manual(2, start=50))).status_code == 201
    await rechunk(tenant, project, run_jobs)
    public_id = await start(tenant, project, only_changed=True)
    assert (await tenant.client.post(f"/jobs/{public_id}/cancel")).status_code == 200
    async with db.transaction() as session:
        assert (await session.get_one(Dataset, first["params"]["dataset_id"])).status == "ready"
    # And the chunks are still new to the next one.
    server.requests.clear()
    job = await run_jobs(await start(tenant, project, only_changed=True))
    assert (job["state"], job["result"]["changed_chunks"]) == ("success", 2)
    assert len(server.requests) == 2


async def test_imported_examples_come_along_win_and_keep_their_side(
    tenant: Tenant, run_jobs: RunJobs, server: LLMServer, db: Database
) -> None:
    project = await make_project(tenant, run_jobs, manual(6))
    first = await run_jobs(await start(tenant, project, num_examples_target=12))
    twin = next(item for item in await examples(tenant, project) if item["is_valid"])["data"]
    for question, answer, split in (
        (twin["instruction"], twin["output"], "eval"),
        ("Who repairs lamps that fell into the harbour?", "The diver of the harbour office repairs them.", "train"),
    ):
        async with db.transaction() as session:
            session.add(
                Example(
                    dataset_id=first["params"]["dataset_id"],
                    source="imported",
                    split=split,
                    instruction=question,
                    input="",
                    output=answer,
                    token_count=9,
                    fingerprint=fingerprint(question, "", answer),
                    meta={},
                )
            )
    job = await run_jobs(await start(tenant, project, num_examples_target=12))
    assert job["state"] == "success", job["error_message"]
    assert job["params"]["dataset_id"] != first["params"]["dataset_id"]
    async with db.transaction() as session:
        rows = (await session.scalars(select(Example).where(Example.dataset_id == job["params"]["dataset_id"]))).all()
    brought = [row for row in rows if row.source == "imported"]
    assert {(row.is_valid, row.split) for row in brought} == {(True, "eval"), (True, "train")}
    again = [row for row in rows if row.source == "generated" and row.instruction == twin["instruction"]]
    # A round that makes up for the duplicate may write it once more.
    assert {(row.is_valid, row.invalid_reason) for row in again} == {(False, "duplicate")}


async def test_what_is_close_to_a_reference_file_is_refused(
    tenant: Tenant, run_jobs: RunJobs, server: LLMServer, db: Database, app: Any
) -> None:
    project = await make_project(tenant, run_jobs)
    storage: Storage = app.state.services.storage
    sentence = sentences(7)[0]
    row = Row(3, "What is written about Lamp-7 and where it was sold first?", "", sentence)
    key = f"references/{canary()}.jsonl"
    await storage.put_bytes(key, row.to_line())
    async with db.transaction() as session:
        project_id = await session.scalar(
            select(Chunk.project_id)
            .join(Content, Content.id == Chunk.content_id)
            .where(Chunk.text.contains(sentence))
            .order_by(Chunk.id.desc())
            .limit(1)
        )
        session.add(
            Content(
                project_id=project_id,
                kind="dataset_upload",
                type="jsonl",
                name="exam.jsonl",
                mime_type="application/jsonl",
                size_bytes=1,
                sha256="0" * 64,
                purpose="reference",
                file_key=key,
                text_key=key,
            )
        )
    job = await run_jobs(await start(tenant, project, examples_per_chunk=2))
    assert job["state"] == "success", job["error_message"]
    refused = [item for item in await examples(tenant, project) if item["invalid_reason"] == "contaminated"]
    assert [item["data"]["output"] for item in refused] == [sentence]
    assert refused[0]["metadata"]["contaminated_by"]["file"] == "exam.jsonl"
    assert refused[0]["metadata"]["contaminated_by"]["line"] == 3
    assert job["result"]["contaminated"] == 1
    report = (await tenant.client.get(f"/projects/{project}/dataset/stats")).json()["report"]
    assert report["decontamination"] == {"reference_rows": 1, "contaminated": 1}


async def test_two_tenants_at_once_never_see_each_other_in_a_prompt(
    make_tenant: Callable[[], Awaitable[Tenant]], run_jobs: RunJobs, server: LLMServer, db: Database
) -> None:
    marks, jobs = [], []
    for _ in range(2):
        tenant, mark = await make_tenant(), canary()
        content = manual(12).replace(b"first sold in", f"first sold by {mark} in".encode())
        project = await make_project(tenant, run_jobs, content, name=f"{mark}.md")
        marks.append(mark)
        jobs.append(await start(tenant, project, num_examples_target=30))
    server.requests.clear()
    server.delay_seconds = 0.02
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", RUN_TASK, str(await id_of(db, jobs[1])))
    first = await run_jobs(jobs[0])
    assert await worker.wait() == 0
    assert first["state"] == "success", first["error_message"]
    prompts = [json.dumps(request["messages"]) for request in server.requests]
    seen = [[mark in prompt for mark in marks] for prompt in prompts]
    assert all(sum(one) == 1 for one in seen)
    assert [sum(column) >= 12 for column in zip(*seen, strict=True)] == [True, True]
