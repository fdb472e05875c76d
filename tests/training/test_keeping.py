"""What a run delivered reaches a worker that only has to prove it, or is found damaged, and a trainer killed again."""
# ruff: noqa: F811  (the fixture is imported)

import asyncio
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from backend.jobs.errors import LeaseLost
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.storage import Storage, StorageUnavailable
from backend.training import child, keeping, local
from backend.training.errors import TrainerKeepsBeingKilled, TrainerKilled
from tests.training.checkpoint_scene import Scene, make, scene  # noqa: F401  (fixture)

METRICS = {"steps": 9, "eval_loss_tuned": 1.5, "history": [{"step": 1, "loss": 3.0}]}


def deliver(out: Path) -> None:
    """As a trainer that is done leaves it."""
    (out / "adapter").mkdir(parents=True)
    (out / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (out / "adapter" / "tokenizer.json").write_text("{}")
    (out / "training_config.json").write_text('{"fingerprint": "f"}')
    (out / "metrics.json").write_text("{}")


async def bring_back(scene: Scene) -> dict[str, Any] | None:
    return await keeping.bring_back(scene.run, scene.storage, scene.fine_tuning, scene.out)


async def keep(scene: Scene) -> None:
    deliver(scene.out)
    await keeping.keep(scene.run, scene.storage, scene.project, scene.fine_tuning, scene.out, dict(METRICS))


async def test_another_worker_gets_what_is_kept_and_need_not_train(scene: Scene, tmp_path: Path) -> None:
    assert await bring_back(scene) is None, "nothing is kept yet"
    await keep(scene)
    other = await scene.again(tmp_path)
    assert await bring_back(other) == METRICS
    assert (other.out / "adapter" / "adapter_model.safetensors").read_bytes() == b"weights"
    assert (other.out / "training_config.json").read_bytes() == (scene.out / "training_config.json").read_bytes()
    # What is on the disk already is not asked of the storage.
    await scene.storage.delete(await scene.files())
    assert await bring_back(other) == METRICS


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "training_config.json"])
async def test_what_is_damaged_is_made_again(scene: Scene, tmp_path: Path, name: str) -> None:
    await keep(scene)
    (key,) = [key for key in await scene.files() if key.endswith(name)]
    await scene.storage.put_bytes(key, b"x")
    other = await scene.again(tmp_path)
    deliver(other.out)
    shutil.rmtree(other.out / "adapter")
    (other.out / "training_config.json").write_text("other")
    assert await bring_back(other) is None
    assert not (other.out / "metrics.json").exists(), "it would say that the run is complete"
    assert not (other.out / "training_config.json").exists() or name != "training_config.json"
    assert any("is damaged" in line for line in await other.said())


class AwayStorage(Storage):
    """The real one, which does not answer the first times."""

    def __init__(self, inner: Storage, times: int) -> None:
        super().__init__(inner._store)
        self.times = times

    async def put_file(self, key: str, path: Path) -> None:
        self.times -= 1
        if self.times >= 0:
            raise StorageUnavailable()
        await super().put_file(key, path)

    async def delete(self, keys: Iterable[str]) -> None:
        if self.times > 0:
            raise StorageUnavailable()
        await super().delete(keys)


async def test_a_storage_that_is_away_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_PAUSE_SECONDS", 0.05)
    deliver(scene.out)
    away = AwayStorage(scene.storage, 20)
    await keeping.keep_patiently(scene.run, away, scene.project, scene.fine_tuning, scene.out, dict(METRICS))
    assert await bring_back(scene) == METRICS
    assert len([line for line in await scene.said() if "waits here for it" in line]) == 1
    monkeypatch.setattr(keeping, "_PATIENCE_SECONDS", 0.2)
    away = AwayStorage(scene.storage, 10**6)
    with pytest.raises(StorageUnavailable):
        await keeping.keep_patiently(scene.run, away, scene.project, scene.fine_tuning, scene.out, dict(METRICS))


async def test_a_trainer_that_is_through_is_given_no_checkpoint(scene: Scene) -> None:
    await scene.store(10)
    shutil.rmtree(scene.out)
    deliver(scene.out)
    await scene.bring()
    assert not list(scene.out.glob("checkpoint-*"))


async def test_a_zombie_keeps_nothing(scene: Scene, tmp_path: Path) -> None:
    await scene.again(tmp_path)
    with pytest.raises(LeaseLost):
        await keep(scene)
    assert await scene.files() == set()


async def test_kills_count_only_while_the_run_gets_no_further(
    scene: Scene,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third kill in a row without a later checkpoint is the last, however many attempts the run has had."""
    real = asyncio.create_subprocess_exec
    dies = tmp_path / "dies.py"
    dies.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    async def spawn(*_: str, **options: Any) -> asyncio.subprocess.Process:
        return await real(sys.executable, str(dies), **options)

    monkeypatch.setattr(child.asyncio, "create_subprocess_exec", spawn)
    bench = local.Bench(settings=settings, storage=scene.storage, library=scene.app.state.services.library)
    async with scene.db.transaction() as session:
        await session.execute(update(Job).where(Job.id == scene.run.claim.id).values(attempts=9))

    async def ignore(_: dict[str, Any]) -> None:
        return None

    async def attempt() -> type[TrainerKilled]:
        with pytest.raises(TrainerKilled) as caught:
            await local._run_child(scene.run, bench, "qlora", {}, tmp_path / "run", ignore, out=scene.out)
        return type(caught.value)

    ends = []
    for step in (0, 0, 10, 20, 20, 20):
        if step and not (scene.out / f"checkpoint-{step}").exists():
            make(scene.out, step)
        ends.append(await attempt())
    assert ends == [TrainerKilled] * 5 + [TrainerKeepsBeingKilled]
