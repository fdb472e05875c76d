"""Each method of training over HTTP: what it wants before there is a job, and what a real run of it leaves."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from backend.datasets.fingerprints import fingerprint
from backend.datasets.models import Dataset, Example
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.projects.models import Project
from backend.training import pushing, queries
from backend.training.methods import NO_HELD_OUT_PREFERENCES, WHOLE_MODEL_PARAMETERS
from backend.training.models import FineTuning
from tests.conftest import Tenant
from tests.contracts import tiny_llama
from tests.training.serving import serving_host

RunJob = Callable[[str], Awaitable[dict[str, Any]]]
QUICK = {"num_epochs": 4, "per_device_batch_size": 8, "gradient_accumulation_steps": 1, "max_seq_length": 128}
BASE = "tiny-rated"


@pytest.fixture(scope="session")
def rated_model(settings: Settings) -> str:
    """The id of a tiny base model that knows the words of the rated lamps."""
    tiny_llama.write(settings.models_path / BASE, "How bright is lamp 7? It has 7 lumens. It is a fruit.\n" * 5)
    return BASE


async def plant(db: Database, tenant: Tenant, *, rated: int, held_out: int, train: int = 12) -> tuple[str, int]:
    """A project with a dataset of lamps, the first of which are rated: `rated` to train on, and `held_out` others."""
    project = await tenant.make_project(name="Lamps")
    async with db.transaction() as session:
        row = (await session.scalars(select(Project).where(Project.public_id == UUID(project)))).one()
        dataset = Dataset(project_id=row.id, name="Lamps", status="ready")
        session.add(dataset)
        await session.flush()
        for number in range(train + 6):
            place = number if number < train else number - train
            most = rated if number < train else held_out
            texts = f"How bright is lamp {number}?", "", f"It has {number} lumens."
            worse = "It is a fruit." if place < most else None
            session.add(
                Example(
                    dataset_id=dataset.id,
                    split="train" if number < train else "eval",
                    instruction=texts[0],
                    output=texts[2],
                    rejected=worse,
                    token_count=12,
                    fingerprint=fingerprint(*texts, None, worse),
                )
            )
        return project, dataset.id


async def resolve(tenant: Tenant, project: str, model: str = BASE) -> None:
    answer = await tenant.client.post(f"/projects/{project}/model/resolve", json={"model_id": model})
    assert answer.status_code == 200, answer.text


async def start(tenant: Tenant, project: str, method: str, **hyperparams: Any) -> Any:
    body = {"method": method, "hyperparams": {**QUICK, **hyperparams}}
    answer = await tenant.client.post(f"/projects/{project}/train/start", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def test_a_run_on_preferences(tenant: Tenant, db: Database, run_jobs: RunJob, rated_model: str) -> None:
    project, _ = await plant(db, tenant, rated=10, held_out=6)
    await resolve(tenant, project)
    started = await start(tenant, project, "dpo", learning_rate=5e-3, num_epochs=8, lora_dropout=0.0)
    assert started["warnings"] == []
    job = await run_jobs(started["job_id"])
    assert job["state"] == "success", job
    assert (job["result"]["train_examples"], job["result"]["eval_examples"]) == (10, 6), "only those that were rated"
    assert job["result"]["eval_loss_base"] == pytest.approx(0.6931, abs=1e-3)
    found = (await tenant.client.get(f"/projects/{project}/train/evaluation")).json()
    preferences = found["preferences"]
    assert (preferences["pairs"], preferences["pairs_skipped"]) == (6, 0)
    assert preferences["reward_accuracy"] >= 0.5
    margin = preferences["reward_margin"]
    assert margin["low"] <= margin["mean"] <= margin["high"]
    assert found["verdict"] == "better", found["sentence"]
    assert "6 held-out pairs" in found["sentence"]
    # Losses and answers are those of all held-out examples, as for every other method.
    assert (found["examples"], len(found["answers"])) == (6, 6)
    assert found["base"]["loss"] > 1
    assert found["base"]["perplexity"] is not None
    report = (await tenant.client.get(f"/projects/{project}/train/report")).text
    assert "- Method: dpo" in report
    assert "| preferred answer found likelier |" in report
    assert "| loss of the preferred answers |" in report
    shown = (await tenant.client.get(f"/projects/{project}/train/status")).json()
    assert shown["method"] == "dpo"


async def test_all_weights(
    app: Any, tenant: Tenant, db: Database, run_jobs: RunJob, settings: Settings, rated_model: str
) -> None:
    """Trained, kept, exported, ready to be pushed, and served as a model of its own."""
    project, _ = await plant(db, tenant, rated=3, held_out=0)
    await resolve(tenant, project)
    started = await start(tenant, project, "full", learning_rate=1e-3, num_epochs=2)
    job = await run_jobs(started["job_id"])
    assert job["state"] == "success", job
    assert job["result"]["train_examples"] == 12
    found = (await tenant.client.get(f"/projects/{project}/train/evaluation")).json()
    assert (found["examples"], found["preferences"]) == (6, None)
    exported = (await tenant.client.post(f"/projects/{project}/export")).json()
    assert (await run_jobs(exported["job_id"]))["state"] == "success"
    listed = (await tenant.client.get(f"/projects/{project}/export/files")).json()["files"]
    names = {item["filename"] for item in listed}
    assert {"model.safetensors", "config.json", "tokenizer.json", "report.md", "README.md"} <= names
    assert not any(name.startswith("adapter") for name in names)
    async with db.transaction() as session:
        run = (await session.scalars(select(FineTuning).where(FineTuning.public_id == UUID(started["run_id"])))).one()
        pushed = pushing.choose(await queries.list_artifacts(session, run.id, queries.EXPORT), "adapter")
    assert {"model.safetensors", "config.json", "README.md"} <= set(pushed)
    async with serving_host(app):
        asked = {"model": f"ft-{run.public_id}", "messages": [{"role": "user", "content": "How?"}], "max_tokens": 4}
        answer = await tenant.client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    assert 1 <= answer.json()["usage"]["completion_tokens"] <= 4


async def no_run(tenant: Tenant, db: Database, project: str) -> None:
    async with db.transaction() as session:
        row = (await session.scalars(select(Project).where(Project.public_id == UUID(project)))).one()
        assert not (await session.scalars(select(FineTuning.id).where(FineTuning.project_id == row.id))).all()
        assert not (await session.scalars(select(Job.id).where(Job.project_id == row.id, Job.kind == "training"))).all()


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"hyperparams": {"lora_r": 0}}, 400, "BAD_HYPERPARAMETER", "lora_r must be a whole number from 1"),
        ({"hyperparams": {"learning_rate": -1e-4}}, 400, "BAD_HYPERPARAMETER", "learning_rate must be a number from"),
        ({"hyperparams": {"num_epochs": 10_000}}, 400, "BAD_HYPERPARAMETER", "num_epochs must be a whole number"),
        ({"method": "full", "hyperparams": {"use_dora": True}}, 400, "BAD_HYPERPARAMETER", "use_dora is for adapters"),
        ({"method": "full", "hyperparams": {"use_rslora": True}}, 400, "BAD_HYPERPARAMETER", "use_rslora is for"),
        ({"method": "dpo", "hyperparams": {"dpo_beta": 0}}, 400, "BAD_HYPERPARAMETER", "dpo_beta must be"),
        ({"method": "dpo"}, 400, "TOO_FEW_PREFERENCES", "the dataset has 1"),
        ({"method": "rlhf"}, 422, "VALIDATION_ERROR", "method"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else None,
)
async def test_what_no_run_can_be(
    tenant: Tenant, db: Database, rated_model: str, body: dict[str, Any], status: int, code: str, words: str
) -> None:
    """Refused on both faces, before there is a run or a job."""
    project, dataset = await plant(db, tenant, rated=1, held_out=0)
    await resolve(tenant, project)
    answer = await tenant.client.post(f"/projects/{project}/train/start", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text
    assert words in answer.json()["detail"]
    platform = {"dataset_id": dataset, "name": "x", "provider": "local", "model": BASE}
    platform |= {"method": body.get("method", "lora"), "hyperparameters": body.get("hyperparams", {})}
    answer = await tenant.client.post("/api/fine-tunings", json=platform)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text
    assert words in answer.json()["detail"]
    await no_run(tenant, db, project)


async def test_a_large_base_is_not_trained_whole(tenant: Tenant, db: Database, rated_model: str) -> None:
    project, dataset = await plant(db, tenant, rated=0, held_out=0)
    await resolve(tenant, project)
    async with db.transaction() as session:
        row = (await session.scalars(select(Project).where(Project.public_id == UUID(project)))).one()
        row.model_info = {**(row.model_info or {}), "num_parameters_exact": WHOLE_MODEL_PARAMETERS + 50_000_000}
    answer = await tenant.client.post(f"/projects/{project}/train/start", json={"method": "full"})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "MODEL_TOO_LARGE")
    assert "1.1B" in answer.json()["detail"] or "1.0B" in answer.json()["detail"]
    assert "qlora" in answer.json()["detail"]
    body = {"dataset_id": dataset, "name": "x", "provider": "local", "model": BASE, "method": "full"}
    answer = await tenant.client.post("/api/fine-tunings", json=body)
    assert answer.json()["error_code"] == "MODEL_TOO_LARGE"
    await no_run(tenant, db, project)


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
async def test_a_model_that_does_not_write_is_refused(
    tenant: Tenant, db: Database, settings: Settings, kind: str
) -> None:
    folder = settings.models_path / f"no-writer-{kind}"
    if not folder.exists():
        tiny_llama.write(folder, "words")
        architecture = {"encoder": "BertForMaskedLM", "encoder-decoder": "T5ForConditionalGeneration"}[kind]
        described = {**tiny_llama.CONFIG, "architectures": [architecture], "is_encoder_decoder": kind != "encoder"}
        described["model_type"] = {"encoder": "bert", "encoder-decoder": "t5"}[kind]
        (folder / "config.json").write_text(json.dumps(described))
    project, _ = await plant(db, tenant, rated=0, held_out=0)
    await resolve(tenant, project, folder.name)
    answer = await tenant.client.post(f"/projects/{project}/train/start", json={"method": "lora"})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "MODEL_NOT_TRAINABLE"), answer.text
    await no_run(tenant, db, project)


async def test_ratings_without_held_out_ones_are_warned_of(tenant: Tenant, db: Database, rated_model: str) -> None:
    project, dataset = await plant(db, tenant, rated=2, held_out=0)
    await resolve(tenant, project)
    started = await start(tenant, project, "dpo")
    assert started["warnings"] == [NO_HELD_OUT_PREFERENCES]
    await tenant.client.post(f"/projects/{project}/train/cancel")
    body = {"dataset_id": dataset, "name": "x", "provider": "local", "model": BASE, "method": "dpo"}
    created = await tenant.client.post("/api/fine-tunings", json=body)
    assert created.status_code == 201, created.text
    assert NO_HELD_OUT_PREFERENCES in created.json()["warnings"]
    assert created.json()["hyperparameters"]["learning_rate"] == 2e-5
    one = f"/api/fine-tunings/{created.json()['id']}"
    await tenant.client.post(f"{one}/cancel")
    # Another method brings its own default; a rate that somebody chose is kept.
    again = await tenant.client.post(f"{one}/retrain", json={"method": "lora"})
    assert (again.status_code, again.json()["method"]) == (201, "lora"), again.text
    assert again.json()["hyperparameters"]["learning_rate"] == 2e-4
    await tenant.client.post(f"/api/fine-tunings/{again.json()['id']}/cancel")
    same = await tenant.client.post(f"{one}/retrain", json={})
    assert (same.json()["method"], same.json()["hyperparameters"]["learning_rate"]) == ("dpo", 2e-5)
    await tenant.client.post(f"/api/fine-tunings/{same.json()['id']}/cancel")


async def test_what_is_odd_about_a_run_is_told_while_it_goes_on(
    tenant: Tenant, db: Database, run_jobs: RunJob, settings: Settings
) -> None:
    """A base without a chat template, questions that are too long, and nothing held out: none of them fails a run."""
    folder = settings.models_path / "tiny-plain"
    if not folder.exists():
        tiny_llama.write(folder, "How bright is lamp 7? It has 7 lumens.\n" * 5)
        described = json.loads((folder / "tokenizer_config.json").read_text())
        del described["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(described))
    project, dataset = await plant(db, tenant, rated=0, held_out=0)
    async with db.transaction() as session:
        mine = Example.dataset_id == dataset
        rows = (await session.scalars(select(Example).where(mine).order_by(Example.id))).all()
        rows[0].instruction = "Well, " + "how bright is the lamp? " * 40
        rows[1].output = "It has " + "many, many " * 60 + "lumens."
        for row in rows:
            row.is_valid = row.split == "train"
    await resolve(tenant, project, folder.name)
    started = await start(tenant, project, "lora", num_epochs=1, max_seq_length=96)
    job = await run_jobs(started["job_id"])
    assert job["state"] == "success", job
    # The second answer alone is too long: it is left out, and no other example is.
    assert job["result"]["train_examples"] == 11
    told = (await tenant.client.get(f"/projects/{project}/train/logs/stream")).text
    for words in (
        "has no chat template, so ",
        "1 examples are longer than max_seq_length=96: the middle of their questions was cut",
        "1 examples are longer than max_seq_length=96 and were left out",
        "There are no held-out examples",
    ):
        assert words in told, words
    found = (await tenant.client.get(f"/projects/{project}/train/evaluation")).json()
    assert found["verdict"] == "unproven"
