"""The contract's operations on fine-tunings with provider `local`, and what is refused before anything starts."""

import asyncio
from collections.abc import AsyncIterator
from datetime import date, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from backend.datasets.models import Dataset
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.providers.errors import ModelNotFound
from backend.training import fine_tunings, statuses
from backend.training.models import Artifact, FineTuning
from backend.training.statuses import MOVES, Status
from tests.conftest import Tenant, registered, stored_keys
from tests.contracts.conftest import RunJob
from tests.contracts.shapes import matches
from tests.training.conftest import plant_dataset, plant_key

SHAPE = {
    "id": int,
    "dataset_id": int,
    "name": str,
    "description": str,
    "model": str,
    "provider": "local",
    "status": str,
    "progress": float,
    "hyperparameters": dict,
    "external_id": None,
    "error_message": None,
    "created_at": datetime,
    "updated_at": datetime,
}
QUICK = {"n_epochs": 1, "per_device_batch_size": 8, "gradient_accumulation_steps": 1, "max_seq_length": 64, "lora_r": 2}


async def job_of(db: Database, number: int) -> str:
    async with db.transaction() as session:
        run = await session.get_one(FineTuning, number)
        return str((await session.get_one(Job, run.job_id)).public_id)


@pytest.fixture
async def ready(tenant: Tenant, db: Database, base_model: str) -> dict[str, Any]:
    """The body of a request that can be carried out."""
    dataset = await plant_dataset(db, await tenant.make_project(name="Lamps"))
    return {
        "dataset_id": dataset,
        "name": "Lamp expert",
        "description": "Knows lamps",
        "model": base_model,
        "provider": "local",
        "hyperparameters": QUICK,
        "method": "lora",
    }


@pytest.fixture(scope="module")
async def trained(
    app: Any, anonymous: Any, db: Database, base_model: str, run_jobs: RunJob
) -> AsyncIterator[tuple[Tenant, int]]:
    """A tenant and the number of a fine-tuning that was really trained here."""
    async with registered(app, anonymous) as tenant:
        dataset = await plant_dataset(db, await tenant.make_project(name="Lamps"))
        body = {
            "dataset_id": dataset,
            "name": "Lamp expert",
            "description": "Knows lamps",
            "model": base_model,
            "provider": "local",
            "hyperparameters": QUICK,
            "method": "lora",
        }
        answer = await tenant.client.post("/api/fine-tunings", json=body)
        assert answer.status_code == 201, answer.text
        number = answer.json()["id"]
        job = await run_jobs(await job_of(db, number))
        assert job["state"] == "success", job
        yield tenant, number


async def test_create_list_change(tenant: Tenant, ready: dict[str, Any], db: Database) -> None:
    answer = await tenant.client.post("/api/fine-tunings", json=ready)
    assert answer.status_code == 201, answer.text
    created = answer.json()
    matches(created, {**SHAPE, "status": "queued", "completed_at": None, "warnings": list} | {"warnings": []})
    assert created["hyperparameters"]["num_epochs"] == 1
    listed = await tenant.client.get("/api/fine-tunings", params={"dataset_id": ready["dataset_id"]})
    assert listed.headers["X-Total-Count"] == "1"
    assert [run["id"] for run in listed.json()] == [created["id"]]
    assert [run["id"] for run in (await tenant.client.get("/api/fine-tunings")).json()] == [created["id"]]
    path = f"/api/fine-tunings/{created['id']}"
    changed = (await tenant.client.put(path, json={"name": "Renamed", "description": "Other"})).json()
    assert (changed["name"], changed["description"]) == ("Renamed", "Other")
    assert changed["updated_at"] > created["updated_at"]
    assert (await tenant.client.get(path)).json() == changed
    assert (await tenant.client.put(path, json={"name": None})).status_code == 422
    # The studio face shows the same run.
    project = (await tenant.client.get("/projects")).json()["items"][0]
    assert project["status"] == "training"
    status = (await tenant.client.get(f"/projects/{project['id']}/train/status")).json()
    assert status["job_id"] == await job_of(db, created["id"])


async def test_the_contracts_example_at_a_provider(
    app: Any, tenant: Tenant, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a base that is still open; what the provider does with it: tests/training/test_remote.py."""
    monkeypatch.setattr(fine_tunings, "today", lambda: date(2026, 11, 22))
    await plant_key(app, db, tenant, "openai")
    dataset = await plant_dataset(db, await tenant.make_project(name="Lamps"))
    body = {
        "dataset_id": dataset,
        "name": "Nouveau fine-tuning",
        "description": "Description du nouveau fine-tuning",
        "model": "gpt-4.1-mini-2025-04-14",
        "provider": "openai",
        "hyperparameters": {"n_epochs": 3},
    }
    answer = await tenant.client.post("/api/fine-tunings", json=body)
    assert answer.status_code == 201, answer.text
    figures = dict.fromkeys(("training_loss", "validation_loss", "step", "total_steps"))
    same = {**SHAPE, **body, "progress": 0.0, "metrics": figures, "completed_at": None}
    matches(answer.json(), {**same, "status": "queued"})
    path = f"/api/fine-tunings/{answer.json()['id']}"
    [listed] = (await tenant.client.get("/api/fine-tunings", params={"dataset_id": dataset})).json()
    assert listed == (await tenant.client.get(path)).json()
    matches(listed, {**same, "status": "queued"})
    renamed = {"name": "Fine-tuning renommé", "description": "Description mise à jour"}
    matches((await tenant.client.put(path, json=renamed)).json(), {**same, **renamed, "status": "queued"})
    ended = {"status": "cancelled", "error_message": "Coût trop élevé", "completed_at": datetime}
    cancelled = await tenant.client.post(f"{path}/cancel", json={"reason": "Coût trop élevé"})
    matches(cancelled.json(), {**same, **renamed, **ended})
    unfinished = await tenant.client.post(f"{path}/test", json={"prompt": "Quelle est la procédure pour... ?"})
    assert (unfinished.status_code, unfinished.json()["error_code"]) == (400, "FINE_TUNING_NOT_FINISHED")
    for given in ({"learning_rate": 0.0001}, {"epochs": 3}):
        refused = await tenant.client.post("/api/fine-tunings", json={**body, "hyperparameters": given})
        assert (refused.status_code, refused.json()["error_code"]) == (400, "BAD_HYPERPARAMETER")
        assert "n_epochs" in refused.json()["detail"]


async def test_cancel_keeps_the_reason(tenant: Tenant, ready: dict[str, Any]) -> None:
    created = (await tenant.client.post("/api/fine-tunings", json=ready)).json()
    path = f"/api/fine-tunings/{created['id']}"
    answer = await tenant.client.post(f"{path}/cancel", json={"reason": "Coût trop élevé"})
    assert answer.status_code == 200
    matches(answer.json(), {**SHAPE, "status": "cancelled", "error_message": "Coût trop élevé"})
    assert (await tenant.client.get(path)).json()["completed_at"]
    assert (await tenant.client.delete(path)).status_code == 204
    assert (await tenant.client.get(path)).status_code == 404


async def test_a_cancel_of_a_running_training_is_shown_at_once_and_settled_by_its_worker(
    tenant: Tenant, ready: dict[str, Any], db: Database
) -> None:
    created = (await tenant.client.post("/api/fine-tunings", json=ready)).json()
    async with db.transaction() as session:
        run = await session.get_one(FineTuning, created["id"])
        await session.execute(update(Job).where(Job.id == run.job_id).values(state="running"))
        run.status = "training"
    path = f"/api/fine-tunings/{created['id']}"
    answer = (await tenant.client.post(f"{path}/cancel", json={"reason": "No"})).json()
    assert (answer["status"], answer["is_settled"], answer["completed_at"]) == ("cancelled", False, None)
    async with db.transaction() as session:
        assert (await session.get_one(FineTuning, created["id"])).status == "training"


@pytest.mark.parametrize(
    ("changes", "status", "code", "words"),
    [
        ({"dataset_id": 2**40}, 404, "DATASET_NOT_FOUND", ""),
        ({"provider": "nobody"}, 400, "UNKNOWN_PROVIDER", "openai"),
        ({"provider": "anthropic", "model": "claude"}, 400, "PROVIDER_HAS_NO_FINE_TUNING", ""),
        ({"provider": "openai", "model": "gpt-3.5-turbo"}, 400, "MODEL_NOT_TRAINABLE", "2026-10-23"),
        ({"provider": "mistral", "model": "unknown"}, 400, "MODEL_NOT_TRAINABLE", "Bases that work now"),
        ({"model": "../etc"}, 404, "MODEL_NOT_FOUND", ""),
        ({"hyperparameters": {"epochs": 1}}, 400, "BAD_HYPERPARAMETER", "num_epochs"),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "BAD_HYPERPARAMETER", "num_epochs"),
        ({"hyperparameters": {"n_epochs": 1, "num_epochs": 1}}, 400, "BAD_HYPERPARAMETER", "give one"),
        (
            {"provider": "together", "model": "Qwen/Qwen3-8B", "hyperparameters": {"wings": 2}},
            400,
            "BAD_HYPERPARAMETER",
            "n_epochs",
        ),
        (
            {"provider": "together", "model": "Qwen/Qwen3-8B", "hyperparameters": {}},
            401,
            "PROVIDER_KEY_MISSING",
            "together",
        ),
    ],
)
async def test_what_is_refused_starts_nothing(
    tenant: Tenant, ready: dict[str, Any], changes: dict[str, Any], status: int, code: str, words: str
) -> None:
    answer = await tenant.client.post("/api/fine-tunings", json={**ready, **changes})
    assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text
    assert words in answer.json()["detail"]
    assert (await tenant.client.get("/api/fine-tunings")).json() == []


async def test_datasets_that_are_too_small_or_not_ready(
    app: Any, tenant: Tenant, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tunings, "today", lambda: date(2026, 11, 22))
    await plant_key(app, db, tenant, "openai")
    project = await tenant.make_project()
    small = await plant_dataset(db, project, train=9)
    body = {"dataset_id": small, "name": "x", "provider": "openai", "model": "gpt-4.1-mini-2025-04-14"}
    answer = await tenant.client.post("/api/fine-tunings", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DATASET_TOO_SMALL")
    assert "10" in answer.json()["detail"]
    empty = await plant_dataset(db, project, train=0)
    assert (await tenant.client.post("/api/fine-tunings", json={**body, "dataset_id": empty})).status_code == 400
    async with db.transaction() as session:
        await session.execute(update(Dataset).where(Dataset.id == small).values(status="processing"))
    answer = await tenant.client.post("/api/fine-tunings", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DATASET_NOT_READY")


async def test_the_plan_limits_fine_tunings(
    tenant: Tenant, ready: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "plans", {"Free": {"max_fine_tunings": 1}})
    created = await tenant.client.post("/api/fine-tunings", json=ready)
    assert created.status_code == 201
    answer = await tenant.client.post("/api/fine-tunings", json=ready)
    assert (answer.status_code, answer.json()["error_code"]) == (403, "PLAN_LIMIT_REACHED")
    await tenant.client.post(f"/api/fine-tunings/{created.json()['id']}/cancel")
    assert (await tenant.client.post("/api/fine-tunings", json=ready)).status_code == 201


async def test_why_it_failed_is_told_in_the_readers_language(
    tenant: Tenant, ready: dict[str, Any], db: Database
) -> None:
    number = (await tenant.client.post("/api/fine-tunings", json=ready)).json()["id"]
    path, french = f"/api/fine-tunings/{number}", {"Accept-Language": "fr"}
    error = ModelNotFound(model_id="a/b")
    async with db.transaction() as session:
        fine_tunings.fail(await session.get_one(FineTuning, number), error)
    shown = (await tenant.client.get(path)).json()
    assert (shown["error_message"], shown["error_code"]) == (error.detail, error.code)
    told = (await tenant.client.get(path, headers=french)).json()
    assert told["error_message"].startswith("Le modèle « a/b » est introuvable")
    assert (await tenant.client.get("/api/fine-tunings", headers=french)).json() == [told]


async def test_a_request_that_is_sent_again_starts_one_run(tenant: Tenant, ready: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "one"}
    answers = await asyncio.gather(
        *(tenant.client.post("/api/fine-tunings", json=ready, headers=headers) for _ in range(3))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len((await tenant.client.get("/api/fine-tunings")).json()) == 1


async def test_others_do_not_exist(tenant: Tenant, ready: dict[str, Any], make_tenant: Any) -> None:
    created = (await tenant.client.post("/api/fine-tunings", json=ready)).json()
    other = (await make_tenant()).client
    path = f"/api/fine-tunings/{created['id']}"
    answers = [
        await other.get(path),
        await other.put(path, json={"name": "Mine"}),
        await other.delete(path),
        await other.post(f"{path}/cancel"),
        await other.post(f"{path}/retrain"),
        await other.post(f"{path}/test", json={"prompt": "?"}),
        await other.get(f"{path}/events"),
        await other.post("/api/fine-tunings", json=ready),
        await other.get("/api/fine-tunings", params={"dataset_id": ready["dataset_id"]}),
    ]
    assert [answer.status_code for answer in answers] == [404] * len(answers)


async def test_a_local_run_trains_and_shows_its_figures(trained: tuple[Tenant, int]) -> None:
    tenant, number = trained
    run = (await tenant.client.get(f"/api/fine-tunings/{number}")).json()
    figures = {"training_loss": float, "step": int, "total_steps": int}
    matches(run, {**SHAPE, "status": "completed", "progress": 100.0, "metrics": figures, "completed_at": datetime})
    events = (await tenant.client.get(f"/api/fine-tunings/{number}/events")).text
    assert "event: complete" in events


async def test_a_local_model_answers_by_a_worker(trained: tuple[Tenant, int], db: Database, run_jobs: RunJob) -> None:
    tenant, number = trained
    asked = asyncio.create_task(
        tenant.client.post(f"/api/fine-tunings/{number}/test", json={"prompt": "How bright?", "max_tokens": 4})
    )
    job = None
    while job is None:
        await asyncio.sleep(0.1)
        async with db.transaction() as session:
            job = await session.scalar(select(Job).where(Job.kind == "playground", Job.state == "queued"))
    assert (await run_jobs(str(job.public_id)))["state"] == "success"
    answer = await asked
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json()["response"], str)


async def test_a_template_that_refuses_a_system_prompt_is_the_same_error_by_a_worker(
    trained: tuple[Tenant, int], db: Database
) -> None:
    tenant, number = trained
    body = {"prompt": "How bright?", "system_prompt": "Be brief."}
    asked = asyncio.create_task(tenant.client.post(f"/api/fine-tunings/{number}/test", json=body))
    refused = None
    while refused is None:
        await asyncio.sleep(0.1)
        failing = update(Job).where(Job.kind == "playground", Job.state == "queued").returning(Job.id)
        # As the trainer tells it: tests/trainers/test_examples.py.
        told = {"error_code": "PROMPT_REFUSED", "error_message": "It takes no system message."}
        async with db.transaction() as session:
            refused = await session.scalar(failing.values(state="failed", finished_at=func.now(), **told))
    answer = await asked
    assert (answer.status_code, answer.json()["error_code"]) == (400, "PROMPT_REFUSED")
    assert answer.json()["detail"] == "It takes no system message."


async def test_a_local_model_without_a_worker_says_so_in_time(
    trained: tuple[Tenant, int], db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, number = trained
    monkeypatch.setattr(settings, "playground_timeout_seconds", 0.3)
    answer = await tenant.client.post(f"/api/fine-tunings/{number}/test", json={"prompt": "How bright?"})
    assert (answer.status_code, answer.json()["error_code"]) == (503, "PLAYGROUND_TIMEOUT")
    async with db.transaction() as session:
        states = await session.scalars(select(Job.state).where(Job.kind == "playground"))
        assert "queued" not in states.all()


async def test_retrain_uses_the_same_frozen_examples(trained: tuple[Tenant, int], db: Database) -> None:
    tenant, number = trained
    first = (await tenant.client.get(f"/api/fine-tunings/{number}")).json()
    body = {"hyperparameters": {**QUICK, "n_epochs": 2}, "name": "Again"}
    answer = await tenant.client.post(f"/api/fine-tunings/{number}/retrain", json=body)
    assert answer.status_code == 201, answer.text
    again = answer.json()
    assert (again["name"], again["retrained_from_id"], again["method"]) == ("Again", number, "lora")
    assert again["dataset_version"] == first["dataset_version"]
    assert again["hyperparameters"]["num_epochs"] == 2
    await tenant.client.post(f"/api/fine-tunings/{again['id']}/cancel")
    other = await tenant.client.post(f"/api/fine-tunings/{number}/retrain", json={"provider": "openai"})
    assert (other.status_code, other.json()["error_code"]) == (400, "MODEL_NOT_TRAINABLE")


async def test_a_deletion_takes_the_files_along(app: Any, tenant: Tenant, ready: dict[str, Any], db: Database) -> None:
    created = (await tenant.client.post("/api/fine-tunings", json=ready)).json()
    project = (await tenant.client.get("/projects")).json()["items"][0]["id"]
    await tenant.client.post(f"/api/fine-tunings/{created['id']}/cancel")
    key = f"projects/{project}/runs/x/1/adapter_model.safetensors"
    await app.state.services.storage.put_bytes(key, b"weights")
    async with db.transaction() as session:
        session.add(
            Artifact(
                fine_tuning_id=created["id"], role="adapter", filename="a", size_bytes=7, sha256="0" * 64, file_key=key
            )
        )
    assert key in await stored_keys(app, f"projects/{UUID(project)}")
    assert (await tenant.client.delete(f"/api/fine-tunings/{created['id']}")).status_code == 204
    assert key not in await stored_keys(app, f"projects/{UUID(project)}")


def test_the_table_of_moves() -> None:
    assert set(MOVES) == set(Status)
    assert frozenset({Status.COMPLETED, Status.CANCELLED, Status.ERROR}) == statuses.ENDED
    for end in statuses.ENDED:
        assert not MOVES[end]
        assert statuses.furthest(end, "training") == end
    assert statuses.furthest("training", "queued") == "training"
    assert statuses.furthest("queued", "training") == "training"
    assert statuses.furthest("preparing", "error") == "error"
    assert "completed" not in statuses.sources_of("training")
