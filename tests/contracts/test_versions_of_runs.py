"""A run is trained on exactly the version that it names: whatever is edited meanwhile, and after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from backend.datasets.models import DatasetVersion
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.training import data_files
from backend.training.models import FineTuning
from tests.conftest import Tenant
from tests.contracts.conftest import HYPERPARAMS, RunJob
from tests.datasets.planting import Planted, plant

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [{"role": "user", "content": "Hé?"}, {"role": "assistant", "content": "Ho."}]


@pytest.fixture
async def planted(db: Database, tenant: Tenant, base_model: str) -> Planted:
    """Enough to train on for a moment; some with earlier turns, one with a character that ends lines."""
    rows: list[dict[str, Any]] = [
        {"input": "The text."}, {"history": [SYSTEM]}, {"history": [SYSTEM, *TURNS]}, {"output": "One\u2028two\x85."},
        {}, {}, {"split": "eval", "history": TURNS}, {"is_valid": False}, {"split": "preview"},
    ]  # fmt: skip
    planted = await plant(db, tenant, rows)
    resolved = await tenant.client.post(f"/projects/{planted.project}/model/resolve", json={"model_id": base_model})
    assert resolved.status_code == 200, resolved.text
    return planted


async def start(planted: Planted) -> Any:
    body = {"method": "lora", "hyperparams": {**HYPERPARAMS, "num_epochs": 1}}
    answer = await planted.tenant.client.post(f"/projects/{planted.project}/train/start", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def status(planted: Planted) -> Any:
    return (await planted.tenant.client.get(f"/projects/{planted.project}/train/status")).json()


async def spoil(planted: Planted) -> None:
    """Changes everything that the run has not read yet."""
    await planted.send("DELETE", f"/examples/{planted.ids[0]}", status=204)
    await planted.patch(1, {"data": {"instruction": "Changed meanwhile?", "output": "Changed meanwhile."}})
    await planted.patch(2, {"split": "eval"})
    await planted.patch(6, {"is_valid": False})
    await planted.patch(7, {"is_valid": True})


async def test_edits_before_the_worker_begins(
    planted: Planted, run_jobs: RunJob, db: Database, settings: Settings
) -> None:
    started = await start(planted)
    named = (await status(planted))["dataset"]
    frozen = await messages(db, planted, named["version"])
    assert [len(found) for found in frozen.values()] == [6, 1]
    await spoil(planted)
    job = await run_jobs(started["job_id"])
    assert job["state"] == "success", job
    assert (await status(planted))["dataset"] == named
    folder = settings.data_dir / "runs" / started["run_id"]
    assert {split: written(folder / f"{split}.jsonl") for split in frozen} == frozen
    assert job["result"]["train_examples"] == 6
    again = await start(planted)
    assert (await status(planted))["dataset"]["version"] == named["version"] + 1
    versions = (await planted.get("/versions"))["versions"]
    assert [version["run_ids"] for version in versions] == [[again["run_id"]], [started["run_id"]]]


async def test_what_a_trainer_reads(planted: Planted, db: Database, tmp_path: Path) -> None:
    version = await planted.send("POST", "/versions", None, 201)
    path = tmp_path / "new" / "train.jsonl"
    await data_files.write_conversations(path, db.transaction, planted.dataset_id, "train", version["number"])
    found = written(path)
    assert found[0][0]["content"] == "Question 0?\n\nThe text."
    assert found[1] == [
        SYSTEM,
        {"role": "user", "content": "Question 1?"},
        {"role": "assistant", "content": "Answer 1."},
    ]
    assert [turn["role"] for turn in found[2]] == ["system", "user", "assistant", "user", "assistant"]
    assert len(path.read_text().splitlines()) == 6, "no text ends a line"


async def test_a_killed_attempt_reads_the_same_again(planted: Planted, db: Database, tmp_path: Path) -> None:
    """What the first attempt had written is lost with its worker; the next one finds the version, not the edits."""
    version = await planted.send("POST", "/versions", None, 201)
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for split in ("train", "eval"):
        await data_files.write_conversations(first, db.transaction, planted.dataset_id, split, version["number"])
        second.with_suffix(".part").write_text("half a li")
        await spoil(planted) if split == "train" else None
        await data_files.write_conversations(second, db.transaction, planted.dataset_id, split, version["number"])
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size > 0


async def test_a_start_that_is_refused_freezes_nothing(planted: Planted, db: Database) -> None:
    await start(planted)
    await planted.patch(0, {"data": {"output": "Changed."}})
    refused = await planted.tenant.client.post(f"/projects/{planted.project}/train/start", json={"method": "lora"})
    assert (refused.status_code, refused.json()["error_code"]) == (409, "TRAINING_ALREADY_RUNNING")
    assert [version["number"] for version in (await planted.get("/versions"))["versions"]] == [1]
    await planted.tenant.client.post(f"/projects/{planted.project}/train/cancel")


async def test_a_run_from_before_there_were_versions(planted: Planted, run_jobs: RunJob, db: Database) -> None:
    """Queued by an earlier release: it gets its version when it begins."""
    started = await start(planted)
    async with db.transaction() as session:
        run = (await session.scalars(select(FineTuning).where(FineTuning.public_id == started["run_id"]))).one()
        run.dataset_version = None
        run.model = "nobody/nothing"  # ends the run as soon as it has its data
    assert (await status(planted))["dataset"] is None
    await spoil(planted)
    assert (await run_jobs(started["job_id"]))["error_code"] == "MODEL_NOT_FOUND"
    assert (await status(planted))["dataset"]["version"] == 2
    async with db.transaction() as session:
        found = await session.scalars(select(DatasetVersion).where(DatasetVersion.dataset_id == planted.dataset_id))
        assert sorted(version.number for version in found) == [1, 2]


async def messages(db: Database, planted: Planted, version: int) -> dict[str, list[Any]]:
    answers = {
        split: await planted.tenant.client.get(
            f"{planted.path}/export", params={"format": "messages", "split": split, "version": version}
        )
        for split in ("train", "eval")
    }
    return {
        split: [json.loads(line)["messages"] for line in answer.content.split(b"\n")[:-1]]
        for split, answer in answers.items()
    }


def written(path: Path) -> list[Any]:
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
