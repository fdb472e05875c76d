"""The studio contract's other examples, in its own values: health, projects, model, files, hardware, login."""

import json
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import delete

from backend import __version__
from backend.kit.db import Database
from backend.training import hardware
from backend.training.models import HardwareReport
from tests.conftest import Tenant, stored_keys
from tests.contracts.conftest import SAMPLE
from tests.contracts.shapes import matches
from tests.providers.hub_server import HubServer

PROJECT = {
    "name": "Mon projet Q&A",
    "description": "Fine-tuning sur mes docs internes",
    "task_type": "qa",
    "config": {"num_examples_target": 2000, "max_seq_length": 2048, "train_eval_split": 0.9},
}
TIMES = {"created_at": datetime, "updated_at": datetime}
STATS = {"file_count": 0, "chunk_count": 0, "example_count": 0, "last_job_status": None}
NOBODYS = "01a20159-0000-7000-8000-000000000000"
ERROR = {"detail": str, "error_code": str, "context": dict}


async def test_health(anonymous: httpx.AsyncClient) -> None:
    answer = await anonymous.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "db": "connected", "redis": "connected", "version": __version__}


async def test_create_project(tenant: Tenant) -> None:
    answer = await tenant.client.post("/projects", json=PROJECT)
    assert answer.status_code == 201
    matches(
        answer.json(), {**PROJECT, **TIMES, "id": UUID, "base_model_id": None, "model_info": None, "status": "draft"}
    )


async def test_list_projects(tenant: Tenant) -> None:
    ids = [await tenant.make_project(name=f"Project {number}", task_type="instruction") for number in range(3)]
    answer = (await tenant.client.get("/projects")).json()
    item = {"id": UUID, "name": str, "task_type": "instruction", "status": "draft", "base_model_id": None, **TIMES}
    matches(answer, {"items": [{**item, "stats": STATS}], "total": 3, "limit": 50, "offset": 0})
    assert [project["id"] for project in answer["items"]] == ids[::-1]
    window = (await tenant.client.get("/projects", params={"limit": 1, "offset": 1})).json()
    assert ([project["id"] for project in window["items"]], window["total"]) == ([ids[1]], 3)
    assert (await tenant.client.get("/projects", params={"offset": 99})).json()["total"] == 3
    assert (await tenant.client.get("/projects", params={"status": "draft"})).json()["total"] == 3
    assert (await tenant.client.get("/projects", params={"status": "training"})).json()["total"] == 0


async def test_change_project(tenant: Tenant) -> None:
    project = (await tenant.client.post("/projects", json=PROJECT)).json()
    body = {"name": "Nouveau nom", "task_type": "instruction", "config": {"num_examples_target": 3000}}
    answer = await tenant.client.patch(f"/projects/{project['id']}", json=body)
    assert answer.status_code == 200
    config = {**PROJECT["config"], "num_examples_target": 3000}
    matches(
        answer.json(), {**body, "config": config, "id": UUID, "description": PROJECT["description"], "stats": STATS}
    )
    assert answer.json()["updated_at"] > project["updated_at"]
    assert (await tenant.client.get(f"/projects/{project['id']}")).json() == answer.json()


async def test_delete_project_with_all_it_owns(tenant: Tenant, app: Any) -> None:
    project = await tenant.make_project()
    await tenant.upload(project, "a.txt", b"Some words of a text that is not empty.")
    queued = (await tenant.client.post(f"/projects/{project}/chunks/generate")).json()["job_id"]
    assert await stored_keys(app, f"projects/{project}")
    answer = await tenant.client.delete(f"/projects/{project}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert await stored_keys(app, f"projects/{project}") == []
    for path in (f"/projects/{project}", f"/projects/{project}/files", f"/jobs/{queued}"):
        assert (await tenant.client.get(path)).status_code == 404
    assert (await tenant.client.delete(f"/projects/{project}")).status_code == 404


async def test_resolve_a_model_of_the_hub(tenant: Tenant, outside_hub: HubServer) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": b"x" * 2000, "tokenizer.json": b"{}"}
    outside_hub.add("meta-llama/Llama-3.1-8B", files, license="llama3.1", num_parameters=8_030_261_248)
    project = await tenant.make_project()
    answer = await tenant.client.post(
        f"/projects/{project}/model/resolve", json={"model_id": "meta-llama/Llama-3.1-8B"}
    )
    assert answer.status_code == 200, answer.text
    documented = {
        "model_id": "meta-llama/Llama-3.1-8B",
        "model_type": "llama",
        "num_parameters": 8030000000,
        "estimated_vram_fp16_gb": 16.06,
        "estimated_vram_4bit_gb": 5.52,
        "architecture": "LlamaForCausalLM",
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "license": "llama3.1",
        "valid": True,
        "warnings": [],
    }
    matches(answer.json(), documented)
    detail = (await tenant.client.get(f"/projects/{project}")).json()
    matches(detail, {"base_model_id": "meta-llama/Llama-3.1-8B", "model_info": documented})


async def test_a_model_that_does_not_exist(tenant: Tenant) -> None:
    project = await tenant.make_project()
    answer = await tenant.client.post(f"/projects/{project}/model/resolve", json={"model_id": "nobody/xxx"})
    assert answer.status_code == 404
    matches(answer.json(), {**ERROR, "detail": "Model 'nobody/xxx' not found on HuggingFace Hub"})
    assert answer.json()["error_code"] == "MODEL_NOT_FOUND"
    assert (await tenant.client.get(f"/projects/{project}")).json()["base_model_id"] is None


async def test_hub_down(tenant: Tenant, outside_hub: HubServer) -> None:
    project = await tenant.make_project()
    outside_hub.mode = "503"
    try:
        answer = await tenant.client.post(f"/projects/{project}/model/resolve", json={"model_id": "nobody/away"})
    finally:
        outside_hub.mode = "up"
    assert (answer.status_code, answer.json()["error_code"]) == (503, "HUB_UNAVAILABLE")
    assert "MODELS_DIR" in answer.json()["detail"]


async def test_upload_several_and_delete_one(tenant: Tenant, app: Any) -> None:
    project = await tenant.make_project()
    files = [
        ("files", ("notes.txt", b"Plain words in a file.", "text/plain")),
        ("files", ("guide.md", SAMPLE.encode(), "application/octet-stream")),
    ]
    answer = await tenant.client.post(f"/projects/{project}/files/upload", files=files, data={"kind": "raw_doc"})
    assert answer.status_code == 201
    uploaded = answer.json()["files"]
    assert [(one["filename"], one["mime_type"]) for one in uploaded] == [
        ("notes.txt", "text/plain"),
        ("guide.md", "text/markdown"),
    ]
    data = b'{"instruction": "a", "output": "b"}\n'
    dataset = await tenant.upload(project, "data.jsonl", data, kind="dataset_upload")
    matches(
        dataset.json(),
        {"files": [{"kind": "dataset_upload", "mime_type": "application/jsonl", "size_bytes": len(data)}]},
    )
    assert (await tenant.client.get(f"/projects/{project}")).json()["status"] == "ready"
    answer = await tenant.client.delete(f"/projects/{project}/files/{uploaded[0]['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    left = (await tenant.client.get(f"/projects/{project}/files")).json()["files"]
    assert [one["filename"] for one in left] == ["guide.md", "data.jsonl"]
    assert not any("notes" in key for key in await stored_keys(app, f"projects/{project}"))
    assert (await tenant.client.delete(f"/projects/{project}/files/{uploaded[0]['id']}")).status_code == 404


async def test_hardware_without_a_gpu(tenant: Tenant, db: Database) -> None:
    async with db.transaction() as session:
        await hardware.save(session, "worker-cpu", {"has_nvidia_smi": False, "cuda_available": False, "gpus": []})
    answer = await tenant.client.get("/hardware/check")
    assert answer.status_code == 200
    documented = {
        "has_nvidia_smi": False,
        "gpu_name": None,
        "cuda_available": False,
        "bnb_available": False,
        "recommended_method": None,
        "recommendation_reason": "No CUDA GPU detected. GPU fine-tuning not possible on this machine.",
    }
    matches(answer.json(), {**documented, "notes": list, "warnings": list})
    assert "No NVIDIA GPU found. Consider using a cloud GPU instance." in answer.json()["warnings"]


async def test_hardware_with_a_gpu(tenant: Tenant, db: Database) -> None:
    report = {
        "has_nvidia_smi": True,
        "gpus": [{"name": "NVIDIA RTX 4090", "vram_total_gb": 25.77, "vram_free_gb": 24.16}],
        "driver_version": "550.54.14",
        "torch_version": "2.5.0",
        "torch_cuda": "12.4",
        "cuda_available": True,
        "bnb_available": True,
    }
    async with db.transaction() as session:
        await hardware.save(session, "worker-gpu", report)
    try:
        answer = await tenant.client.get("/hardware/check")
    finally:
        # It is of a machine that the other tests do not have.
        async with db.transaction() as session:
            await session.execute(delete(HardwareReport).where(HardwareReport.worker == "worker-gpu"))
    assert answer.status_code == 200
    documented = {
        "has_nvidia_smi": True,
        "gpu_name": "NVIDIA RTX 4090",
        "gpu_count": 1,
        "vram_total_gb": 24.0,
        "vram_free_gb": 22.5,
        "driver_version": "550.54.14",
        "cuda_runtime": "12.4",
        "torch_version": "2.5.0",
        "torch_cuda": "12.4",
        "cuda_available": True,
        "bnb_available": True,
        "recommended_method": "qlora",
        "recommendation_reason": "24GB VRAM detected. QLoRA recommended for 8B+ models to save memory.",
        "notes": ["All checks passed"],
        "warnings": [],
    }
    assert answer.json() == documented


async def test_cancel_a_queued_job(tenant: Tenant, run_jobs: Any) -> None:
    project = await tenant.make_project()
    await tenant.upload(project, "a.txt", b"Some words of a text that is not empty.")
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate")).json()["job_id"]
    answer = await tenant.client.post(f"/jobs/{job}/cancel")
    assert answer.status_code == 200
    matches(answer.json(), {"status": "cancelled"})
    assert (await tenant.client.post(f"/jobs/{job}/cancel")).status_code == 200
    row = await run_jobs(job)
    assert (row["state"], row["attempts"]) == ("cancelled", 0)
    assert (await tenant.client.get(f"/projects/{project}")).json()["status"] == "ready"


async def test_login_and_profile(anonymous: httpx.AsyncClient) -> None:
    body = {"email": f"{uuid4()}@example.com", "password": "password123", "name": "John Doe"}
    user = {
        "id": int,
        "email": body["email"],
        "name": "John Doe",
        "is_active": True,
        "has_completed_onboarding": False,
        "created_at": datetime,
    }
    registered = await anonymous.post("/api/auth/register", json=body)
    assert registered.status_code == 201
    matches(registered.json(), user)
    login = await anonymous.post("/api/auth/login", json={"username": body["email"], "password": "password123"})
    pair = {"access_token": str, "refresh_token": str, "token_type": "bearer", "user": user}
    assert login.status_code == 200
    matches(login.json(), pair)
    refreshed = await anonymous.post("/api/auth/refresh-token", json={"refresh_token": login.json()["refresh_token"]})
    matches(refreshed.json(), pair)
    headers = {"Authorization": f"Bearer {refreshed.json()['access_token']}"}
    profile = await anonymous.get("/api/users/me", headers=headers)
    figures = {"has_received_free_credits": False, "free_characters_remaining": 100_000_000, "total_characters_used": 0}
    matches(profile.json(), {**user, **figures})
    answer = await anonymous.post("/api/auth/logout", headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"detail": "Successfully logged out"})


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing/here", 404, "NOT_FOUND"),
        ("GET", "/api/nothing", 404, "NOT_FOUND"),
        ("PUT", "/projects", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/health", 405, "METHOD_NOT_ALLOWED"),
        ("GET", f"/projects/{NOBODYS}", 404, "PROJECT_NOT_FOUND"),
        ("GET", f"/jobs/{NOBODYS}", 404, "JOB_NOT_FOUND"),
        ("GET", "/projects/1", 422, "VALIDATION_ERROR"),
        ("GET", "/projects?limit=0", 422, "VALIDATION_ERROR"),
    ],
)
async def test_every_refusal_has_one_body(tenant: Tenant, method: str, path: str, status: int, code: str) -> None:
    answer = await tenant.client.request(method, path)
    assert answer.status_code == status
    matches(answer.json(), {**ERROR, "error_code": code})
    assert set(answer.json()) == set(ERROR)
    assert answer.json()["detail"].endswith(".")
    assert ("allow" in answer.headers) == (status == 405)
