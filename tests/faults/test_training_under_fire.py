"""A training loses its child, its worker and its whole machine, and ends with the weights of one that lost nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from backend.datasets.models import Dataset
from backend.embedded import processes
from backend.embedded.servers import temporary_servers
from backend.jobs.states import JobState
from backend.kit import migrations
from tests.faults.training_plant import TrainingPlant, losses, wait_gone

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(not processes.LINUX, reason="finds a worker's processes in /proc"),
]


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[TrainingPlant]:
    with temporary_servers() as servers:
        await asyncio.to_thread(migrations.upgrade, servers.database_url)
        async with TrainingPlant(servers, tmp_path / "plant") as made:
            yield made


@pytest.mark.timeout(600)
async def test_a_run_goes_on_elsewhere_whatever_is_killed(plant: TrainingPlant) -> None:
    job = await plant.start_run()
    reference, expected = await plant.start_reference()
    try:
        plant.start_trainer("one")

        # The child alone: its worker starts another one.
        first = await plant.until_named(0)
        gone = plant.kill_child("qlora")
        second = await plant.until_named(first)

        # Worker, servers and disk at once: another worker, with nothing on its disk, goes on from storage.
        assert gone not in plant.children("qlora")
        plant.kill_machine("one")
        plant.start_postgres()
        plant.start_redis()
        stored = await plant.named()
        assert stored >= second
        plant.start_trainer("two")

        # The second worker too, once it only has the proof to do: a third one must not train again.
        async def proving() -> bool:
            return bool(plant.children("evaluate"))

        await plant.until(proving, 180, "the evaluation does not start")
        children = plant.children("evaluate")
        plant.kill("two")
        wait_gone(children)
        plant.start_trainer("three")
        ended = await plant.until_over(job)
        assert reference.wait(60) == 0, (plant.folder / "reference.log").read_text()[-2000:]
    finally:
        reference.kill()
        reference.wait()

    assert ended.state == JobState.SUCCESS, (ended.error_message, plant.logs())
    run = await plant.run()
    disk = plant.folder / "three" / "runs" / str(run.public_id)
    assert not (disk / "qlora.config.json").exists(), "the third worker had nothing to train"
    assert run.metrics["evaluation"]["answers"] == 4

    # One curve without a gap, and the very weights of the run that nothing happened to.
    same = json.loads((expected / "metrics.json").read_text())
    assert losses(run.metrics["history"]) == losses(same["history"])
    assert [step for step, _ in losses(run.metrics["history"])] == list(range(1, same["steps"] + 1))
    assert plant.delivered() == (expected / "adapter" / "adapter_model.safetensors").read_bytes()

    # What the run told: each attempt begins where it says, and none lost more than what came after a checkpoint.
    lines = await plant.told(job)
    resumed = [line["resumed_from_step"] for line in lines if "resumed_from_step" in line]
    assert len(resumed) == 2, lines
    assert resumed[0] >= first
    assert resumed[1] >= stored
    position = 0
    for line in lines:
        if "resumed_from_step" in line:
            assert line["resumed_from_step"] <= position
            position = line["resumed_from_step"]
        elif "train_loss" in line:
            assert line["step"] == position + 1, (position, line)
            position = line["step"]
    assert position == same["steps"]

    # Nothing of the checkpoints is left, neither rows nor files.
    assert await plant.named() == -1
    assert plant.stored("/checkpoints/") == []
    async with plant.db.transaction() as session:
        assert await session.scalar(select(Dataset.status).where(Dataset.id == run.dataset_id)) == "ready"
