"""Requests that cannot be carried out: the contract's status, a code, a sentence with advice, and no job left."""

import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from backend.kit.config import Settings
from backend.kit.db import Database
from backend.main import create_app
from tests.conftest import Tenant
from tests.contracts.conftest import SAMPLE, RunJob
from tests.llm_server import LLMServer

JSON = {"Content-Type": "application/json"}


async def no_job_is_live(tenant: Tenant, project: str) -> None:
    for state in ("queued", "running"):
        assert (await tenant.client.get(f"/projects/{project}/jobs", params={"status": state})).json() == {"jobs": []}


async def refused(tenant: Tenant, project: str, path: str, body: Any, status: int, code: str) -> dict[str, Any]:
    answer = await tenant.client.post(f"/projects/{project}{path}", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
async def chunked(tenant: Tenant, run_jobs: RunJob) -> str:
    project = await tenant.make_project()
    assert (await tenant.upload(project, "quillon-40.md", SAMPLE.encode())).status_code == 201
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate")).json()["job_id"]
    assert (await run_jobs(job))["state"] == "success"
    return project


@pytest.fixture
async def trainable(tenant: Tenant, chunked: str, run_jobs: RunJob, base_model: str) -> str:
    job = await tenant.client.post(f"/projects/{chunked}/dataset/generate", json={"num_examples_target": 6})
    assert (await run_jobs(job.json()["job_id"]))["state"] == "success"
    await tenant.client.post(f"/projects/{chunked}/model/resolve", json={"model_id": base_model})
    return chunked


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "advice"),
    [
        ("/chunks/generate", None, 400, "NO_DOCUMENTS", "files/upload"),
        (
            "/chunks/generate",
            {"chunk_size_tokens": 64, "chunk_overlap_tokens": 64},
            400,
            "BAD_CHUNK_SIZES",
            "less than",
        ),
        ("/chunks/generate", {"chunk_size_tokens": 1}, 422, "VALIDATION_ERROR", "chunk_size_tokens"),
        ("/dataset/preview", None, 400, "NO_CHUNKS", "chunks/generate"),
        ("/dataset/generate", {"num_examples_target": 5}, 400, "NO_CHUNKS", "chunks/generate"),
        ("/dataset/generate", {"num_examples_target": 0}, 422, "VALIDATION_ERROR", "num_examples_target"),
        ("/dataset/generate", {"num_examples_target": 10**30}, 422, "VALIDATION_ERROR", "num_examples_target"),
        ("/train/start", None, 400, "NO_BASE_MODEL", "model/resolve"),
        ("/train/cancel", None, 404, "NO_TRAINING_RUN", "train/start"),
        ("/train/compare", {"questions": ["Why?"]}, 400, "NOTHING_TO_EXPORT", "train/start"),
        ("/train/compare", {"questions": []}, 422, "VALIDATION_ERROR", "questions"),
        ("/export", None, 400, "NOTHING_TO_EXPORT", "train/start"),
        ("/model/resolve", {"model_id": "../../etc"}, 404, "MODEL_NOT_FOUND", "not found"),
        ("/model/resolve", {"model_id": "a b c"}, 400, "MODEL_ID_INVALID", "organisation/name"),
        ("/model/resolve", {"model_id": ""}, 422, "VALIDATION_ERROR", "model_id"),
        ("/model/resolve", {"model_id": "x" * 301}, 422, "VALIDATION_ERROR", "model_id"),
        ("/model/resolve", None, 422, "VALIDATION_ERROR", "body"),
    ],
)
async def test_too_early_or_out_of_range(
    tenant: Tenant, path: str, body: Any, status: int, code: str, advice: str
) -> None:
    project = await tenant.make_project()
    found = await refused(tenant, project, path, body, status, code)
    assert advice in found["detail"]
    await no_job_is_live(tenant, project)
    assert (await tenant.client.get(f"/projects/{project}")).json()["status"] == "draft"


@pytest.mark.parametrize("path", ["/train/status", "/train/logs/stream", "/export/download", "/export/download/x"])
async def test_nothing_there_yet(tenant: Tenant, path: str) -> None:
    answer = await tenant.client.get(f"/projects/{await tenant.make_project()}{path}")
    assert answer.status_code == 404
    assert answer.json()["error_code"] in ("NO_TRAINING_RUN", "EXPORT_NOT_FOUND")
    assert "POST /projects/" in answer.json()["detail"]


async def test_no_llm_configured(tenant: Tenant, chunked: str, settings: Settings) -> None:
    for update in ({"llm_base_url": ""}, {"llm_model": ""}):
        other = create_app(settings.model_copy(update=update))
        async with other.router.lifespan_context(other):
            transport = httpx.ASGITransport(app=other, raise_app_exceptions=False)
            headers = {"Authorization": tenant.client.headers["Authorization"]}
            async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
                for path in ("preview", "generate"):
                    answer = await client.post(f"/projects/{chunked}/dataset/{path}")
                    assert (answer.status_code, answer.json()["error_code"]) == (503, "LLM_NOT_CONFIGURED")
                    assert "LLM_BASE_URL" in answer.json()["detail"]
    await no_job_is_live(tenant, chunked)
    assert (await tenant.client.get(f"/projects/{chunked}")).json()["status"] == "chunked"


async def run_to_the_end(job: str, run_jobs: RunJob, db: Database) -> dict[str, Any]:
    """Runs a job as often as it wants to be tried, without its waits in between."""
    for _ in range(20):
        row = await run_jobs(job)
        if row["state"] != "queued":
            return row
        async with db.transaction() as session:
            await session.execute(text("UPDATE jobs SET available_at = NULL WHERE id = :id"), {"id": row["id"]})
    pytest.fail("the job never ends")


async def test_llm_server_down(
    tenant: Tenant, chunked: str, run_jobs: RunJob, db: Database, llm_server: LLMServer
) -> None:
    answer = await tenant.client.post(f"/projects/{chunked}/dataset/preview", json={"num_examples": 1})
    llm_server.mode = "down"
    try:
        row = await run_to_the_end(answer.json()["job_id"], run_jobs, db)
    finally:
        llm_server.mode = "good"
    assert (row["state"], row["error_code"], row["attempts"]) == ("failed", "LLM_UNAVAILABLE", row["max_attempts"])
    assert "the model is loading" in row["error_message"]
    assert llm_server.url in row["error_message"]
    await no_job_is_live(tenant, chunked)
    assert (await tenant.client.get(f"/projects/{chunked}/dataset/examples")).json()["total"] == 0


@pytest.mark.parametrize("step", ["preview", "generate"])
async def test_llm_answers_garbage(
    tenant: Tenant, chunked: str, run_jobs: RunJob, llm_server: LLMServer, step: str
) -> None:
    body = {"preview": {"num_examples": 2}, "generate": {"num_examples_target": 2}}[step]
    answer = await tenant.client.post(f"/projects/{chunked}/dataset/{step}", json=body)
    llm_server.mode = "garbage"
    try:
        row = await run_jobs(answer.json()["job_id"])
    finally:
        llm_server.mode = "good"
    assert (row["state"], row["error_code"]) == ("failed", "NOTHING_GENERATED"), row
    assert "LLM_MODEL" in row["error_message"]
    stats = (await tenant.client.get(f"/projects/{chunked}/dataset/stats")).json()
    assert (stats["valid"], stats["total"]) == (0, stats["invalid"])
    if step == "generate":
        assert sum(stats["validation_errors"].values()) == stats["invalid"]
        assert (await tenant.client.get(f"/projects/{chunked}")).json()["status"] == "error"
    await no_job_is_live(tenant, chunked)
    # And it works again with a better model.
    again = await tenant.client.post(f"/projects/{chunked}/dataset/{step}", json=body)
    assert (await run_jobs(again.json()["job_id"]))["state"] == "success"


async def test_llm_writes_what_no_database_takes(
    tenant: Tenant, chunked: str, run_jobs: RunJob, llm_server: LLMServer
) -> None:
    answer = await tenant.client.post(f"/projects/{chunked}/dataset/generate", json={"num_examples_target": 4})
    llm_server.mode = "nul"
    try:
        row = await run_jobs(answer.json()["job_id"])
    finally:
        llm_server.mode = "good"
    assert row["state"] == "success", row
    items = (await tenant.client.get(f"/projects/{chunked}/dataset/examples")).json()["items"]
    assert items
    assert not any("\0" in json.dumps(item, ensure_ascii=False) for item in items)


async def test_the_grounded_strategy_of_tiny_models(tenant: Tenant, chunked: str, run_jobs: RunJob) -> None:
    body = {"num_examples": 8, "ollama_model": "tiny-135m"}
    answer = await tenant.client.post(f"/projects/{chunked}/dataset/preview", json=body)
    row = await run_jobs(answer.json()["job_id"])
    assert row["state"] == "success", row
    items = (await tenant.client.get(f"/projects/{chunked}/dataset/examples", params={"split": "preview"})).json()[
        "items"
    ]
    flat = " ".join(SAMPLE.split())
    assert items
    assert all(" ".join(item["data"]["output"].split()) in flat for item in items)


async def test_data_jobs_take_turns(tenant: Tenant, chunked: str) -> None:
    first = (await tenant.client.post(f"/projects/{chunked}/dataset/preview")).json()["job_id"]
    for path in ("/dataset/generate", "/dataset/preview", "/chunks/generate"):
        found = await refused(tenant, chunked, path, None, 409, "JOB_ALREADY_RUNNING")
        assert "cancel it" in found["detail"]
    assert (await tenant.client.post(f"/jobs/{first}/cancel")).status_code == 200
    await no_job_is_live(tenant, chunked)


async def test_training_without_a_dataset(tenant: Tenant, base_model: str) -> None:
    project = await tenant.make_project()
    await tenant.client.post(f"/projects/{project}/model/resolve", json={"model_id": base_model})
    found = await refused(tenant, project, "/train/start", {}, 400, "NO_DATASET")
    assert "dataset/generate" in found["detail"]
    await no_job_is_live(tenant, project)


async def test_a_second_training(tenant: Tenant, trainable: str) -> None:
    first = await tenant.client.post(f"/projects/{trainable}/train/start", json={"method": "lora"})
    assert first.status_code == 202
    found = await refused(tenant, trainable, "/train/start", {"method": "lora"}, 409, "TRAINING_ALREADY_RUNNING")
    assert found["detail"] == "A training job is already running for this project"
    assert "train/cancel" in found["context"]["advice"]
    assert (await tenant.client.get(f"/projects/{trainable}/train/status")).json()["run_id"] == first.json()["run_id"]
    example = (await tenant.client.get(f"/projects/{trainable}/dataset/examples")).json()["items"][0]["id"]
    # The run has its own frozen version, so its examples can be edited meanwhile.
    edited = await tenant.client.patch(f"/projects/{trainable}/dataset/examples/{example}", json={"is_valid": False})
    assert (edited.status_code, edited.json()["is_valid"]) == (200, False)

    cancelled = await tenant.client.post(f"/projects/{trainable}/train/cancel")
    assert cancelled.status_code == 200
    assert (cancelled.json()["status"], cancelled.json()["message"]) == ("cancelled", "Training job cancelled")
    assert (await tenant.client.get(f"/projects/{trainable}/train/status")).json()["status"] == "cancelled"
    assert (await tenant.client.get(f"/projects/{trainable}")).json()["status"] == "dataset_ready"
    await refused(tenant, trainable, "/train/cancel", None, 409, "NO_TRAINING_RUNNING")
    await no_job_is_live(tenant, trainable)
    assert (await tenant.client.delete(f"/projects/{trainable}/dataset/examples/{example}")).status_code == 204


@pytest.mark.parametrize(
    "hyperparams",
    [
        {"epochs": 3},
        {"warmup_steps": 3},
        {"num_epochs": 0},
        {"num_epochs": 2.5},
        {"num_epochs": "three"},
        {"num_epochs": True},
        {"num_epochs": None},
        {"num_epochs": 10**300},
        {"num_epochs": -(10**300)},
        {"learning_rate": 5},
        {"learning_rate": [1e-4]},
        {"lora_r": 1e300},
        {"lora_dropout": 1},
        {"x" * 5000: 1},
        {"lora_r": "y" * 5000},
    ],
    ids=lambda value: str(value)[:30],
)
async def test_bad_hyperparameters(tenant: Tenant, hyperparams: dict[str, Any]) -> None:
    project = await tenant.make_project()
    found = await refused(tenant, project, "/train/start", {"hyperparams": hyperparams}, 400, "BAD_HYPERPARAMETER")
    assert "num_epochs, learning_rate, per_device_batch_size" in found["detail"]
    assert len(found["detail"]) < 600
    await no_job_is_live(tenant, project)


async def test_a_broken_base_model_fails_with_a_sentence(
    tenant: Tenant, trainable: str, run_jobs: RunJob, settings: Settings
) -> None:
    folder = settings.models_path / f"broken-{uuid4().hex[:8]}"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"not weights")
    resolved = await tenant.client.post(f"/projects/{trainable}/model/resolve", json={"model_id": folder.name})
    assert (resolved.status_code, resolved.json()["valid"]) == (200, False)
    assert resolved.json()["warnings"]
    await refused(tenant, trainable, "/train/start", None, 400, "MODEL_NOT_TRAINABLE")
    await no_job_is_live(tenant, trainable)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"name": "a\\u0000b"}', 422),
        (b'{"name": "a\\ud800b"}', 422),
        (b'{"name": "ok", "config": {"labels": ["a\\u0000", "b"]}}', 422),
        (b'{"name": "ok", "config": {"x\\u0000": 1}}', 422),
        (b'{"name": "ok", "config": {"x": "\\udfff"}}', 422),
        (b'{"name": "ok", "config": {"x": NaN}}', 422),
        (b'{"name": "ok", "config": {"x": 1e999}}', 422),
        (b'{"name": "ok", "config": {"x": ' + b"9" * 5000 + b"}}", 422),
        (b'{"name": "ok", "config": {"x": ' + b"[" * 40 + b"]" * 40 + b"}}", 422),
        (b"[" * 100_000 + b"]" * 100_000, 422),
        (b'{"name": "ok", "config": {"x": "' + b"y" * 40_000 + b'"}}', 422),
        (b'{"name": "' + b"y" * 201 + b'"}', 422),
        (b'{"name": "ok", "description": "' + b"y" * 10_001 + b'"}', 422),
        (b'{"name": "' + b"y" * 2_000_000 + b'"}', 413),
        (b'{"name": "   "}', 422),
        (b'{"name": null}', 422),
        (b'{"name": 5}', 422),
        (b'{"name": "ok", "task_type": "magic"}', 422),
        (b'{"name": "ok", "config": {"train_eval_split": 1}}', 422),
        (b'{"name": "ok", "config": {"labels": 5}}', 422),
        (b'{"name": "ok"', 422),
        (b"\xff\xfe", 422),
        (b"", 422),
        (b"null", 422),
        (b"[]", 422),
    ],
    ids=range(25),
)
async def test_bodies_that_cannot_be_stored(tenant: Tenant, body: bytes, status: int) -> None:
    for method, path in (("POST", "/projects"), ("PATCH", f"/projects/{await tenant.make_project()}")):
        answer = await tenant.client.request(method, path, content=body, headers=JSON)
        assert answer.status_code == status, answer.text[:500]
        assert answer.json()["error_code"] == ("VALIDATION_ERROR" if status == 422 else "PAYLOAD_TOO_LARGE")
        assert len(answer.json()["detail"]) < 1000
    assert (await tenant.client.get("/projects")).json()["total"] == 1


async def test_a_config_does_not_grow_for_ever(tenant: Tenant) -> None:
    project = await tenant.make_project()
    for number in range(3):
        body = {"config": {f"note{number}": "x" * 15_000}}
        answer = await tenant.client.patch(f"/projects/{project}", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "CONFIG_TOO_LARGE")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=501",
        "limit=-1",
        "limit=x",
        "offset=-1",
        f"offset={2**63}",
        f"limit={10**40}",
        "limit=1.5",
        "status=%00",
        "status=nonsense",
        "limit=",
    ],
)
async def test_bad_windows(tenant: Tenant, query: str) -> None:
    project = await tenant.make_project()
    paths = ["/projects"] if "status" in query else ["/projects", f"/projects/{project}/chunks"]
    for path in paths:
        answer = await tenant.client.get(f"{path}?{query}")
        assert (answer.status_code, answer.json()["error_code"]) == (422, "VALIDATION_ERROR"), query


@pytest.mark.parametrize(
    "query",
    ["type=%00", "type=" + "x" * 51, "status=unknown", "kind=x", "is_valid=maybe", "split=test", "source_file_id=1"],
)
async def test_bad_filters(tenant: Tenant, query: str) -> None:
    project = await tenant.make_project()
    name = query.split("=")[0]
    path = {"kind": "files", "is_valid": "dataset/examples", "split": "dataset/examples", "source_file_id": "chunks"}
    answer = await tenant.client.get(f"/projects/{project}/{path.get(name, 'jobs')}?{query}")
    assert (answer.status_code, answer.json()["error_code"]) == (422, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("register", b'{"email": "a@example.com", "password": "long enough", "name": "\\u0000"}', JSON),
        ("register", b'{"email": "a\\u0000@example.com", "password": "long enough", "name": "x"}', JSON),
        ("login", b'{"username": "\\u0000", "password": "x"}', JSON),
        ("login", b'{"username": "\\ud800", "password": "x"}', {"Content-Type": "text/plain"}),
        ("login", b"username=%00&password=x", {"Content-Type": "application/x-www-form-urlencoded"}),
        ("login", b"username=%ff%fe&password=", {"Content-Type": "application/x-www-form-urlencoded"}),
        ("refresh-token", b'{"refresh_token": "\\u0000"}', JSON),
    ],
    ids=range(7),
)
async def test_nul_in_credentials(
    anonymous: httpx.AsyncClient, path: str, body: bytes, headers: dict[str, str]
) -> None:
    answer = await anonymous.post(f"/api/auth/{path}", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (422, "VALIDATION_ERROR"), answer.text
