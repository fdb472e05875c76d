"""The proof at the end of a real run: nothing held out, a killed child, a disk that is full."""

import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backend.kit.config import Settings
from backend.kit.db import Database
from backend.training import export_formats
from backend.training.errors import ExportNoSpace
from tests.conftest import Tenant
from tests.contracts import tiny_llama
from tests.training.conftest import plant_dataset

RunJob = Callable[[str], Awaitable[dict[str, Any]]]
HYPERPARAMS = {"num_epochs": 1, "per_device_batch_size": 8, "gradient_accumulation_steps": 1, "max_seq_length": 128}


@pytest.fixture(scope="session")
def lamp_model(settings: Settings) -> str:
    """The id of a tiny base model in MODELS_DIR that knows the words of the lamps."""
    tiny_llama.write(settings.models_path / "tiny-lamps", "How bright is lamp 7? It has 7 lumens.\n" * 5)
    return "tiny-lamps"


async def trained(
    tenant: Tenant, db: Database, run_jobs: RunJob, model: str, held_out: int
) -> tuple[str, dict[str, Any]]:
    """A project with one run to its end: its id, and the job."""
    project = await tenant.make_project(name="Lamps")
    await plant_dataset(db, project, train=8, evaluated=held_out)
    answer = await tenant.client.post(f"/projects/{project}/model/resolve", json={"model_id": model})
    assert answer.status_code == 200, answer.text
    started = await tenant.client.post(
        f"/projects/{project}/train/start", json={"method": "lora", "hyperparams": HYPERPARAMS}
    )
    assert started.status_code == 202, started.text
    return project, await run_jobs(started.json()["job_id"])


async def test_without_held_out_examples_nothing_is_proven(
    tenant: Tenant, db: Database, run_jobs: RunJob, lamp_model: str
) -> None:
    project, job = await trained(tenant, db, run_jobs, lamp_model, 0)
    assert job["state"] == "success", job
    found = (await tenant.client.get(f"/projects/{project}/train/evaluation")).json()
    assert (found["verdict"], found["answers"], found["base"]) == ("unproven", [], None)
    assert "nothing could be proven" in found["sentence"]
    assert "**Not proven.**" in (await tenant.client.get(f"/projects/{project}/train/report")).text
    refused = await tenant.client.post(f"/projects/{project}/train/evaluation/judge")
    assert (refused.status_code, refused.json()["error_code"]) == (404, "NO_EVALUATION")


@contextmanager
def killing(kills: int) -> Iterator[list[int]]:
    """Kills evaluating children with SIGKILL as soon as they are there, at most so many; yields those killed."""
    killed: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set() and len(killed) < kills:
            for path in Path("/proc").glob("[0-9]*"):
                number = int(path.name)
                try:
                    command = (path / "cmdline").read_bytes()
                    mine = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1]) == os.getpid()
                except OSError:
                    continue
                if mine and b"backend.trainers.evaluate" in command and number not in killed:
                    os.kill(number, signal.SIGKILL)
                    killed.append(number)
            time.sleep(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the child in /proc")
async def test_an_evaluation_that_is_killed_costs_no_adapter(
    tenant: Tenant, db: Database, run_jobs: RunJob, lamp_model: str
) -> None:
    with killing(3) as killed:
        project, job = await trained(tenant, db, run_jobs, lamp_model, 4)
    assert len(killed) == 3
    assert job["state"] == "success", job
    found = (await tenant.client.get(f"/projects/{project}/train/evaluation")).json()
    assert found["verdict"] == "unproven"
    assert "could not be evaluated" in found["sentence"]
    exported = await tenant.client.post(f"/projects/{project}/export")
    assert (await run_jobs(exported.json()["job_id"]))["state"] == "success"
    files = (await tenant.client.get(f"/projects/{project}/export/files")).json()["files"]
    assert "adapter_model.safetensors" in {item["filename"] for item in files}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the child in /proc")
async def test_an_evaluation_that_is_killed_once_is_taken_up_again(
    tenant: Tenant, db: Database, run_jobs: RunJob, lamp_model: str
) -> None:
    with killing(1) as killed:
        project, job = await trained(tenant, db, run_jobs, lamp_model, 4)
    assert len(killed) == 1
    assert job["state"] == "success", job
    found = (await tenant.client.get(f"/projects/{project}/train/evaluation")).json()
    assert (found["examples"], len(found["answers"])) == (4, 4)
    assert found["verdict"] != "unproven"


async def test_an_export_that_does_not_fit_on_the_disk_is_refused(settings: Settings, tmp_path: Path) -> None:
    export_formats.require_space(settings, tmp_path, ["adapter", "merged"], 1000, 1000)
    with pytest.raises(ExportNoSpace) as caught:
        export_formats.require_space(settings, tmp_path, ["adapter", "gguf-q8_0"], 10**15, 1000)
    assert caught.value.code == "EXPORT_NO_SPACE"
    # The file twice (with its archive), here and in storage, and the merged model that it is made from.
    assert "needs 3240000" in caught.value.detail or "needs 2120000" in caught.value.detail
