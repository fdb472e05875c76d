"""The studio contract's examples of work, in its very words: bodies of preview, generate and start, status, stream."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import select

from backend.jobs.events import EventLog
from backend.jobs.models import Job
from backend.jobs.service import publish_end
from backend.jobs.states import JobState
from backend.kit import redis as kit_redis
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.training.models import FineTuning
from tests.api.sse_client import whole
from tests.conftest import Tenant
from tests.contracts.conftest import SAMPLE, RunJob
from tests.contracts.shapes import matches
from tests.datasets.planting import Planted, plant
from tests.llm_server import LLMServer
from tests.training.test_hyperparams import CONTRACT

ENQUEUED = {"job_id": UUID, "status": "queued", "message": str}
START = {"method": "qlora", "hyperparams": CONTRACT}
METRICS = {
    "step": 450,
    "total_steps": 1000,
    "train_loss": 0.52,
    "eval_loss": 0.48,
    "learning_rate": 1.8e-4,
    "epoch": 1.35,
}
# The contract's stream, up to the event that ends it.
STREAM: list[tuple[str, dict[str, Any]]] = [
    ("log", {"step": 1, "train_loss": 2.45, "learning_rate": 2e-4, "epoch": 0.003}),
    ("log", {"step": 2, "train_loss": 2.31, "learning_rate": 2e-4, "epoch": 0.006}),
    ("progress", {"progress_pct": 1, "message": "Step 2/1000"}),
    ("eval", {"step": 100, "eval_loss": 1.85, "perplexity": 6.36}),
    ("checkpoint", {"step": 500, "path": "checkpoint-500"}),
]


@pytest.fixture
async def trained_on(tenant: Tenant, db: Database, base_model: str) -> Planted:
    """A project with a dataset and a base model, for which a run can be asked."""
    planted = await plant(db, tenant, [{}, {}, {}, {"split": "eval"}])
    answer = await tenant.client.post(f"/projects/{planted.project}/model/resolve", json={"model_id": base_model})
    assert answer.status_code == 200, answer.text
    return planted


async def start(planted: Planted) -> dict[str, Any]:
    answer = await planted.tenant.client.post(f"/projects/{planted.project}/train/start", json=START)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def set_run(db: Database, started: dict[str, Any], metrics: dict[str, Any], **fields: Any) -> Job:
    """Puts a run where its worker would have brought it."""
    async with db.transaction() as session:
        job = (await session.scalars(select(Job).where(Job.public_id == started["job_id"]))).one()
        run = (await session.scalars(select(FineTuning).where(FineTuning.public_id == started["run_id"]))).one()
        run.metrics = metrics
        for name, value in fields.items():
            setattr(job, name, value)
    return job


async def chunked(tenant: Tenant, run_jobs: RunJob) -> str:
    project = await tenant.make_project()
    assert (await tenant.upload(project, "quillon-40.md", SAMPLE.encode())).status_code == 201
    body = {"chunk_size_tokens": 512, "chunk_overlap_tokens": 50}
    answer = await tenant.client.post(f"/projects/{project}/chunks/generate", json=body)
    assert (await run_jobs(answer.json()["job_id"]))["state"] == "success"
    return project


async def test_preview_and_generation_by_the_documented_bodies(
    tenant: Tenant, run_jobs: RunJob, llm_server: LLMServer
) -> None:
    project = await chunked(tenant, run_jobs)
    llm_server.requests.clear()
    jobs = {}
    for step, message, body in (
        ("preview", "Dataset preview job enqueued", {"num_examples": 10, "ollama_model": "llama3.1:70b"}),
        (
            "generate",
            "Dataset generation job enqueued",
            {"num_examples_target": 2000, "examples_per_chunk": 5, "ollama_model": "llama3.1:70b"},
        ),
    ):
        answer = await tenant.client.post(f"/projects/{project}/dataset/{step}", json=body)
        assert answer.status_code == 202, answer.text
        assert answer.json() == {"job_id": answer.json()["job_id"], "status": "queued", "message": message}
        jobs[step] = await run_jobs(answer.json()["job_id"])
        assert jobs[step]["state"] == "success", jobs[step]
    assert {request["model"] for request in llm_server.requests} == {"llama3.1:70b"}
    assert jobs["preview"]["result"]["valid"] == 10
    # A leaflet has no 2,000 examples: the job says so, and no chunk gave more than was allowed.
    result = jobs["generate"]["result"]
    matches(result, {"total_generated": int, "valid": int, "shortfall": {"wanted": 2000, "valid": int, "reason": str}})
    assert result["shortfall"]["valid"] == result["valid"] < 1900
    listed = (await tenant.client.get(f"/projects/{project}/dataset/examples", params={"limit": 500})).json()["items"]
    of_chunk: dict[tuple[Any, ...], int] = {}
    chunks = (await tenant.client.get(f"/projects/{project}/chunks", params={"limit": 500})).json()["items"]
    for item in listed:
        if item["is_valid"] and item["split"] != "preview":
            holders = tuple(chunk["id"] for chunk in chunks if item["metadata"]["quote"] in chunk["content"])
            of_chunk[holders] = of_chunk.get(holders, 0) + 1
    assert sum(of_chunk.values()) == result["valid"]
    assert max(count for holders, count in of_chunk.items() if len(holders) == 1) <= 5


async def test_bodies_are_optional_where_the_contract_says_so(tenant: Tenant, run_jobs: RunJob) -> None:
    project = await tenant.make_project(config={"num_examples_target": 7})
    assert (await tenant.upload(project, "quillon-40.md", SAMPLE.encode())).status_code == 201
    results = {}
    for path in ("chunks/generate", "dataset/preview", "dataset/generate"):
        answer = await tenant.client.post(f"/projects/{project}/{path}")
        assert answer.status_code == 202, answer.text
        results[path] = await run_jobs(answer.json()["job_id"])
    assert results["chunks/generate"]["params"] == {"chunk_size_tokens": 512, "chunk_overlap_tokens": 50}
    assert results["dataset/preview"]["result"]["valid"] == 10
    # The project's own target.
    assert results["dataset/generate"]["result"]["valid"] == 7


async def test_start_and_its_conflict_by_the_documented_body(trained_on: Planted, db: Database) -> None:
    started = await start(trained_on)
    matches(started, {**ENQUEUED, "run_id": UUID, "message": "Training job enqueued on gpu_queue"})
    async with db.transaction() as session:
        run = (await session.scalars(select(FineTuning).where(FineTuning.public_id == started["run_id"]))).one()
    assert run.method == "qlora"
    matches(run.hyperparameters, START["hyperparams"])
    for state in (JobState.QUEUED, JobState.RUNNING):
        await set_run(db, started, {}, state=state)
        again = await trained_on.tenant.client.post(f"/projects/{trained_on.project}/train/start", json=START)
        assert again.status_code == 409
        matches(
            again.json(),
            {
                "detail": "A training job is already running for this project",
                "error_code": "TRAINING_ALREADY_RUNNING",
                "context": dict,
            },
        )


async def test_status_of_a_run_that_runs(trained_on: Planted, db: Database) -> None:
    started = await start(trained_on)
    began = datetime.now(UTC) - timedelta(seconds=3600)
    await set_run(db, started, METRICS, state=JobState.RUNNING, progress_pct=45.2, started_at=began)
    answer = await trained_on.tenant.client.get(f"/projects/{trained_on.project}/train/status")
    assert answer.status_code == 200
    status = answer.json()
    matches(
        status,
        {
            "run_id": started["run_id"],
            "job_id": started["job_id"],
            "status": "running",
            "method": "qlora",
            "progress_pct": 45,
            "current_metrics": METRICS,
            "started_at": began.isoformat().replace("+00:00", "Z"),
        },
    )
    assert status["elapsed_seconds"] in range(3600, 3630)
    listed = (await trained_on.tenant.client.get("/projects", params={"status": "training"})).json()
    assert [item["stats"]["last_job_status"] for item in listed["items"]] == ["running"]


@pytest.mark.parametrize(
    ("ended", "last"),
    [
        (
            {"state": JobState.SUCCESS, "result": {"final_train_loss": 0.32}},
            ("complete", {"status": "success", "duration_seconds": 7200, "final_train_loss": 0.32}),
        ),
        (
            {"state": JobState.FAILED, "error_code": "OUT_OF_MEMORY", "error_message": "CUDA out of memory"},
            ("error", {"status": "failed", "error": "CUDA out of memory", "error_code": "OUT_OF_MEMORY"}),
        ),
    ],
    ids=["complete", "error"],
)
async def test_the_documented_stream_and_its_resumption(
    trained_on: Planted, db: Database, settings: Settings, ended: dict[str, Any], last: tuple[str, dict[str, Any]]
) -> None:
    started = await start(trained_on)
    now = datetime.now(UTC)
    redis = kit_redis.connect(settings.redis_url)
    log = EventLog(redis)
    for name, data in STREAM:
        await log.publish(UUID(started["job_id"]), name, data)
    times = {"started_at": now - timedelta(seconds=7200), "finished_at": now}
    await publish_end(log, await set_run(db, started, {}, **times, **ended))
    await redis.aclose()
    path, client = f"/projects/{trained_on.project}/train/logs/stream", trained_on.tenant.client
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    # Each as in the contract, with its id before it.
    for name, data in [*STREAM, last]:
        written = f"\nevent: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
        assert written in answer.text
    events = whole(answer)
    assert [(event.name, event.data) for event in events] == [*STREAM, last]
    for place, event in enumerate(events):
        rest = await client.get(path, headers={"Last-Event-ID": event.id})
        if event is events[-1]:
            # 204 is what stops an EventSource.
            assert (rest.status_code, rest.content) == (204, b"")
        else:
            assert [(one.id, one.name) for one in whole(rest)] == [(one.id, one.name) for one in events[place + 1 :]]
    await follows_the_job_too(client, started["job_id"], answer)


async def follows_the_job_too(client: httpx.AsyncClient, job: str, of_run: httpx.Response) -> None:
    assert whole(await client.get(f"/jobs/{job}/events")) == whole(of_run)
