"""What is said of a run's memory before it is accepted, and what the worker settles: over HTTP, on real reports."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update

from backend.datasets.models import Example
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.training import admission, hardware
from backend.training.errors import DoesNotFit, WorkerTooSmall
from backend.training.models import FineTuning, HardwareReport
from tests.conftest import Tenant
from tests.contracts import tiny_llama
from tests.training.conftest import plant_dataset

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
Report = Callable[..., Awaitable[None]]


@pytest.fixture
async def report(db: Database) -> AsyncIterator[Report]:
    """Lets a worker without GPU say how much memory it has; in the end none has said anything."""

    async def save(gigabytes: float, worker: str = "worker-of-tests", **more: Any) -> None:
        said = {"cuda_available": False, "gpus": [], "bf16_supported": True, "bnb_available": True}
        async with db.transaction() as session:
            await hardware.save(session, worker, {**said, "memory_usable_gb": gigabytes, **more})

    yield save
    async with db.transaction() as session:
        await session.execute(delete(HardwareReport))


@pytest.fixture
async def project(tenant: Tenant) -> str:
    return await tenant.make_project(name="Lamps")


@pytest.fixture
async def dataset(db: Database, project: str) -> int:
    """Forty pairs of 3000 tokens."""
    number = await plant_dataset(db, project)
    async with db.transaction() as session:
        await session.execute(update(Example).where(Example.dataset_id == number).values(token_count=3000))
    return number


def body(dataset: int, **more: Any) -> dict[str, Any]:
    return {"dataset_id": dataset, "name": "Lamps", "model": BASE, "provider": "local", "method": "lora", **more}


async def count_runs(db: Database, dataset: int) -> int:
    async with db.transaction() as session:
        found = await session.scalar(select(func.count()).where(FineTuning.dataset_id == dataset))
        return int(found or 0)


async def test_a_run_that_fits_nowhere_is_refused_with_what_would(
    tenant: Tenant, db: Database, dataset: int, report: Report
) -> None:
    await report(1.7)
    await report(1.5, "smaller")
    answer = await tenant.client.post("/api/fine-tunings", json=body(dataset))
    assert answer.status_code == 400, answer.text
    told = answer.json()
    assert told["error_code"] == "DOES_NOT_FIT"
    instead = told["context"]["would_fit"]
    assert instead["max_seq_length"] in (64, 128, 256, 512, 1024)
    assert f"a max_seq_length of {instead['max_seq_length']}" in told["detail"]
    assert told["context"]["needed_gb"] > told["context"]["usable_gb"] == 1.5
    assert await count_runs(db, dataset) == 0
    # The way out is one.
    shorter = body(dataset, hyperparameters={"max_seq_length": instead["max_seq_length"]})
    accepted = await tenant.client.post("/api/fine-tunings", json=shorter)
    assert accepted.status_code == 201, accepted.text
    french = await tenant.client.post("/api/fine-tunings", json=body(dataset), headers={"Accept-Language": "fr"})
    assert "demande au moins" in french.json()["detail"]


async def test_the_batch_is_cut_to_fit_and_stays_what_it_was(tenant: Tenant, dataset: int, report: Report) -> None:
    await report(12)
    made = await tenant.client.post("/api/fine-tunings", json=body(dataset))
    assert made.status_code == 201, made.text
    told = made.json()
    expected = told["memory"]["forecast"]
    assert (expected["per_device_batch_size"], expected["gradient_accumulation_steps"]) == (2, 8)
    assert expected["tokens_at_once"] <= 2 * 2048
    assert sum(expected["parts"].values()) == expected["total_bytes"] <= told["memory"]["usable_bytes"]
    assert any("per_device_batch_size 2 of the 4" in warning for warning in told["warnings"])
    assert told["hyperparameters"]["per_device_batch_size"] == 4, "what was asked for, should a larger worker take it"
    shown = (await tenant.client.get(f"/api/fine-tunings/{told['id']}")).json()
    assert shown["memory"] == told["memory"]
    assert shown["memory"]["measured_bytes"] is None


async def test_the_worker_with_the_most_room_decides(tenant: Tenant, dataset: int, report: Report) -> None:
    await report(1.0, "small")
    await report(64, "large")
    made = (await tenant.client.post("/api/fine-tunings", json=body(dataset))).json()
    assert made["memory"]["fits"] is True
    assert made["memory"]["memory_bytes"] == 64_000_000_000
    assert not any("per_device_batch_size" in warning for warning in made["warnings"])


async def test_nobody_is_refused_on_a_guess(tenant: Tenant, dataset: int, report: Report) -> None:
    unknown = (await tenant.client.post("/api/fine-tunings/forecast", json=short(dataset))).json()
    assert (unknown["fits"], unknown["forecast"], unknown["reason"]) == (None, None, admission.NO_WORKER)
    await report(1.0)
    other = short(dataset) | {"model": "acme/unheard-of"}
    shapeless = (await tenant.client.post("/api/fine-tunings/forecast", json=other)).json()
    assert (shapeless["fits"], shapeless["reason"]) == (None, admission.NO_SHAPE)


def short(dataset: int) -> dict[str, Any]:
    return {"dataset_id": dataset, "model": BASE, "method": "lora"}


async def test_a_forecast_starts_nothing(tenant: Tenant, db: Database, dataset: int, report: Report) -> None:
    await report(1.7)
    answer = await tenant.client.post("/api/fine-tunings/forecast", json=short(dataset))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["fits"] is False
    assert told["would_fit"]["max_seq_length"] is not None
    assert told["forecast"]["total_bytes"] > told["usable_bytes"]
    bad = await tenant.client.post(
        "/api/fine-tunings/forecast", json=short(dataset) | {"hyperparameters": {"lora_r": 0}}
    )
    assert bad.json()["error_code"] == "BAD_HYPERPARAMETER"
    assert await count_runs(db, dataset) == 0


async def test_the_studio_says_the_same(tenant: Tenant, project: str, dataset: int, report: Report) -> None:
    path = f"/projects/{project}"
    early = await tenant.client.post(f"{path}/train/forecast")
    assert early.json()["error_code"] == "NO_BASE_MODEL"
    assert (await tenant.client.post(f"{path}/model/resolve", json={"model_id": BASE})).status_code == 200
    await report(1.7)
    refused = await tenant.client.post(f"{path}/train/start", json={"method": "lora"})
    assert (refused.status_code, refused.json()["error_code"]) == (400, "DOES_NOT_FIT")
    await report(12)
    seen = await tenant.client.post(f"{path}/train/forecast", json={"method": "lora"})
    assert seen.status_code == 200, seen.text
    begun = await tenant.client.post(f"{path}/train/start", json={"method": "lora"})
    assert begun.status_code == 202, begun.text
    assert begun.json()["warnings"] == seen.json()["warnings"] != []
    status = (await tenant.client.get(f"{path}/train/status")).json()
    assert status["memory"]["forecast"] == seen.json()["forecast"]


async def test_the_dataset_of_somebody_else_has_no_forecast(
    make_tenant: Callable[[], Awaitable[Tenant]], dataset: int, report: Report
) -> None:
    await report(64)
    other = await make_tenant()
    answer = await other.client.post("/api/fine-tunings/forecast", json=short(dataset))
    assert (answer.status_code, answer.json()["error_code"]) == (404, "DATASET_NOT_FOUND")


async def test_a_worker_without_room_leaves_the_run_to_another(
    app: Any, tenant: Tenant, db: Database, dataset: int, report: Report
) -> None:
    await report(64, "large")
    number = (await tenant.client.post("/api/fine-tunings", json=body(dataset))).json()["id"]
    library = app.state.services.library

    async def settle() -> admission.Outlook:
        async with db.transaction() as session:
            run = await session.get_one(FineTuning, number)
            return await admission.settle(session, library, run, run.dataset_version or 0)

    assert (await settle()).fits is None, "a worker that has not reported yet just begins"
    await report(1.0, hardware.worker_name())
    with pytest.raises(WorkerTooSmall) as caught:
        await settle()
    assert caught.value.retryable
    assert not caught.value.costs_attempt, "the other one may be at work for hours"
    async with db.transaction() as session:
        long_ago = func.clock_timestamp() - timedelta(hours=13)
        await session.execute(
            update(HardwareReport).where(HardwareReport.worker == "large").values(reported_at=long_ago)
        )
    with pytest.raises(DoesNotFit):
        await settle()
    await report(1.0, "large")
    with pytest.raises(DoesNotFit):
        await settle()
    await report(12, hardware.worker_name())
    found = await settle()
    assert found.cut is not None
    assert found.cut.as_config() == {"per_device_batch_size": 2, "recompute": False, "most_tokens": None}


@pytest.mark.timeout(180)
async def test_a_real_run_keeps_forecast_and_measure(
    tenant: Tenant, db: Database, project: str, settings: Settings, report: Report, run_jobs: Any
) -> None:
    name = "tiny-llama-of-forecasts"
    if not (settings.models_path / name).exists():
        tiny_llama.write(settings.models_path / name, "How bright is lamp 7? It has 7 lumens.\n" * 5)
    await report(24, hardware.worker_name())
    dataset = await plant_dataset(db, project, train=8, evaluated=2)
    hyperparameters = {"num_epochs": 1, "max_seq_length": 128, "lora_r": 4}
    made = await tenant.client.post(
        "/api/fine-tunings", json=body(dataset, model=name, hyperparameters=hyperparameters)
    )
    assert made.status_code == 201, made.text
    status = (await tenant.client.get(f"/projects/{project}/train/status")).json()
    job = await run_jobs(status["job_id"])
    assert job["state"] == "success", job
    shown = (await tenant.client.get(f"/api/fine-tunings/{made.json()['id']}")).json()["memory"]
    assert shown["forecast"]["total_bytes"] < 1_500_000_000
    assert shown["measured_bytes"] > 300_000_000
    assert abs(shown["error_pct"]) < 25, shown
    assert (await tenant.client.get(f"/projects/{project}/train/status")).json()["memory"] == shown
    told = (await tenant.client.get(f"/api/fine-tunings/{made.json()['id']}/report")).text
    assert f"- Memory: {shown['measured_bytes'] / 1e9:.2f} GB at most; the forecast was" in told
