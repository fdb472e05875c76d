"""Checkpoints in storage: named under the fence, kept two deep, fetched by their hashes, removed with their run."""
# ruff: noqa: F811  (the fixture is imported)

import asyncio
import hashlib
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from backend.jobs import queue
from backend.jobs.errors import LeaseLost
from backend.jobs.models import Job
from backend.jobs.states import JobState
from backend.kit.db import Database
from backend.storage import open_storage
from backend.training import checkpoint_store, checkpoint_uploads, cleanup
from backend.training.errors import RunFolderBusy, TrainerKilled
from backend.training.models import Artifact
from tests.conftest import Tenant
from tests.training.checkpoint_scene import Scene, SlowStorage, make, scene  # noqa: F401  (fixture)


async def test_the_two_newest_are_kept_and_their_keys_carry_the_fence(scene: Scene) -> None:
    async with scene.db.transaction() as session:
        await session.execute(update(Job).where(Job.id == scene.run.claim.id).values(attempts=7))
    await scene.store(10, 20, 30)
    assert await scene.steps() == {20, 30}
    files = await scene.files()
    assert files == {row.file_key for row in await scene.artifacts()}
    assert all(f"/{scene.run.claim.fence}/checkpoints/" in key for key in files)
    assert any(key.endswith("/30/baseline.json") for key in files)
    async with scene.db.transaction() as session:
        job = await session.get_one(Job, scene.run.claim.id)
    assert job.attempts == 1, "an attempt that got on gives its successors theirs back"


async def test_another_worker_gets_the_newest_with_all_that_belongs_to_it(scene: Scene, tmp_path: Path) -> None:
    await scene.store(10, 20)
    other = await scene.again(tmp_path)
    await other.bring()
    assert {path.relative_to(other.out).as_posix() for path in other.out.rglob("*") if path.is_file()} == {
        "training_config.json",
        "baseline.json",
        *(f"checkpoint-20/{name}" for name in ("weights.safetensors", "state.json", "manifest.json")),
    }
    for path in other.out.rglob("*.*"):
        assert path.read_bytes() == (scene.out / path.relative_to(other.out)).read_bytes()


async def test_what_is_newer_on_this_disk_is_taken_unless_it_is_torn(scene: Scene) -> None:
    await scene.store(20)
    shutil.rmtree(scene.out)
    newer = make(scene.out, 30)
    await scene.bring()
    assert not (scene.out / "checkpoint-20").exists()
    (newer / "state.json").write_text("torn")
    await scene.bring()
    assert (scene.out / "checkpoint-20" / "weights.safetensors").is_file()


@pytest.mark.parametrize("damage", ["flip", "gone", "manifest", "unsealed"])
async def test_a_damaged_one_is_refused_and_the_one_before_is_taken(scene: Scene, tmp_path: Path, damage: str) -> None:
    await scene.store(10, 20)
    name = "manifest.json" if damage in ("manifest", "unsealed") else "weights.safetensors"
    (row,) = [row for row in await scene.artifacts() if row.filename == f"20/checkpoint-20/{name}"]
    if damage == "gone":
        await scene.storage.delete([row.file_key])
    else:
        # "unsealed": the row agrees with the bytes, but the manifest names other ones than those that are there.
        data = b'{"files": {"weights.safetensors": "0"}}' if damage == "unsealed" else b"x"
        await scene.storage.put_bytes(row.file_key, data)
        if damage == "unsealed":
            async with scene.db.transaction() as session:
                digest = hashlib.sha256(data).hexdigest()
                await session.execute(update(Artifact).where(Artifact.id == row.id).values(sha256=digest))
    other = await scene.again(tmp_path)
    await other.bring()
    assert [path.name for path in other.out.glob("checkpoint-*")] == ["checkpoint-10"]
    assert await scene.steps() == {10}
    assert await scene.files() == {row.file_key for row in await scene.artifacts()}
    assert "The stored checkpoint of step 20 is damaged and is passed over." in await other.said()


async def test_without_a_whole_one_the_run_starts_anew_and_says_so(scene: Scene, tmp_path: Path) -> None:
    await scene.store(10)
    for key in await scene.files():
        await scene.storage.put_bytes(key, b"x")
    other = await scene.again(tmp_path)
    await other.bring()
    assert not list(other.out.glob("checkpoint-*"))
    assert "No whole checkpoint is left, so the training starts anew." in await other.said()
    await other.store(5)
    assert await scene.steps() == {5}


async def test_a_zombie_names_nothing_and_leaves_nothing(scene: Scene, tmp_path: Path) -> None:
    await scene.store(10)
    heir = await scene.again(tmp_path)
    await heir.store(20)
    await scene.store(30)
    assert await scene.steps() == {10, 20}
    assert await scene.files() == {row.file_key for row in await scene.artifacts()}
    with pytest.raises(LeaseLost):
        await checkpoint_store.name(scene.run, scene.fine_tuning, 40, [])


async def test_the_newest_wins_and_pruned_files_stay_until_they_are_stored(scene: Scene) -> None:
    slow = SlowStorage(scene.storage)
    async with scene.uploads(slow) as uploads:
        for step in (1, 2, 3):
            make(scene.out, step)
            await uploads.offer(step)
            await asyncio.sleep(0.05)
        for step in (1, 2, 3):
            shutil.rmtree(scene.out / f"checkpoint-{step}")
        assert len(slow.begun) == 1, "one at a time"
        slow.gate.set()
        await scene.idle(uploads)
    assert await scene.steps() == {1, 3}, "the one between was overtaken while it waited"
    assert not (scene.out.parent / "uploading").exists()


async def test_a_run_that_ends_leaves_no_half_of_an_upload(scene: Scene) -> None:
    slow = SlowStorage(scene.storage)
    make(scene.out, 1)
    async with scene.uploads(slow) as uploads:
        await uploads.offer(1)
        while not slow.begun:
            await asyncio.sleep(0.01)
    assert await scene.files() == set()
    assert await scene.steps() == set()


async def test_an_attempt_that_will_be_followed_stores_its_last_checkpoint_first(scene: Scene) -> None:
    with pytest.raises(TrainerKilled):
        async with scene.uploads() as uploads:
            make(scene.out, 1)
            await uploads.offer(1)
            make(scene.out, 2)  # saved, and killed before it could tell
            raise TrainerKilled(exit_code=-9)
    assert 2 in await scene.steps()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_worker_that_is_stopped_hands_over_but_a_cancelled_run_does_not(scene: Scene, cancelled: bool) -> None:
    if cancelled:
        async with scene.db.transaction() as session:
            await queue.ask_to_cancel(session, await session.get_one(Job, scene.run.claim.id))

    async def attempt() -> None:
        async with scene.uploads():
            try:
                await asyncio.sleep(60)
            finally:
                make(scene.out, 7)  # as a trainer does that is told to end

    task = asyncio.create_task(attempt())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await scene.steps() == (set() if cancelled else {7})


async def test_large_checkpoints_stay_on_the_disk_and_it_is_said_once(scene: Scene) -> None:
    for step in (1, 2):
        make(scene.out, step, size=2 * 1024 * 1024)
    async with scene.uploads(max_mb=1) as uploads:
        await uploads.offer(1)
        await uploads.offer(2)
        await scene.idle(uploads)
    assert await scene.files() == set()
    assert len([line for line in await scene.said() if "CHECKPOINT_UPLOAD_MAX_MB" in line]) == 1


async def test_an_upload_that_was_killed_is_cleared_by_the_next_attempt(scene: Scene, tmp_path: Path) -> None:
    await scene.store(10)
    prefix = checkpoint_store.prefix_of(scene.project, scene.fine_tuning, scene.run.claim.fence)
    await scene.storage.put_bytes(f"{prefix}/20/checkpoint-20/state.json", b"half a checkpoint")
    other = await scene.again(tmp_path)
    ours = checkpoint_store.prefix_of(scene.project, scene.fine_tuning, other.run.claim.fence)
    await scene.storage.put_bytes(f"{ours}/30/checkpoint-30/state.json", b"on its way")
    await scene.storage.put_bytes(f"projects/{scene.project.public_id}/runs/adapter", b"not a checkpoint")
    args = (other.run, other.storage, other.project, other.fine_tuning)
    assert await checkpoint_store.clear_lost_uploads(*args) == 1
    assert await checkpoint_store.clear_lost_uploads(*args) == 0
    assert {row.file_key for row in await scene.artifacts()} < await scene.files()


@pytest.mark.parametrize("state", [JobState.SUCCESS, JobState.FAILED, JobState.CANCELLED])
async def test_nothing_is_left_of_a_run_that_ended(scene: Scene, state: JobState) -> None:
    await scene.store(10, 20)
    await checkpoint_store.forget_ended(scene.db, scene.storage)
    assert await scene.steps() == {10, 20}, "it still runs"
    async with scene.db.transaction() as session:
        await queue.finish(session, scene.run.claim, state)
    await checkpoint_store.forget_ended(scene.db, scene.storage)
    assert await scene.steps() == set()
    assert await scene.files() == set()


async def test_a_deleted_project_takes_its_checkpoints_along(scene: Scene, tenant: Tenant) -> None:
    await scene.store(10)
    assert (await tenant.client.delete(f"/projects/{scene.project.public_id}")).status_code in (200, 204)
    assert await scene.files() == set()
    await scene.store(20)
    assert await scene.files() == set()


async def test_halves_of_files_that_no_listing_shows_are_swept(db: Database, tmp_path: Path) -> None:
    storage = open_storage((tmp_path / "storage").as_uri())
    await storage.put_bytes("projects/p/runs/r/whole", b"whole")
    half = tmp_path / "storage" / "projects" / "p" / "runs" / "r" / "weights.safetensors#1"
    half.write_bytes(b"half")
    assert half.name not in " ".join(blob.key for blob in await storage.list_under("projects"))
    assert await storage.delete_unfinished("projects", datetime.now(UTC) - timedelta(hours=1)) == 0
    assert half.exists(), "it may still be written"
    later = datetime.now(UTC) + timedelta(hours=2)
    assert await cleanup.delete_orphaned_files(db, storage, now=later) == 2
    assert not half.exists()


async def test_an_attempt_that_got_no_further_stores_nothing_again_and_earns_nothing(scene: Scene) -> None:
    await scene.store(10)
    async with scene.db.transaction() as session:
        await session.execute(update(Job).where(Job.id == scene.run.claim.id).values(attempts=7))
    slow = SlowStorage(scene.storage)
    slow.gate.set()
    with pytest.raises(RunFolderBusy):
        async with scene.uploads(slow):
            raise RunFolderBusy()
    assert slow.begun == [], "it is there already"
    again = checkpoint_store.describe(scene.out, 10, scene.fine_tuning, "projects/elsewhere")
    await checkpoint_store.name(scene.run, scene.fine_tuning, 10, again)
    async with scene.db.transaction() as session:
        job = await session.get_one(Job, scene.run.claim.id)
    assert job.attempts == 7, "or a run that gets nowhere would be tried for ever"


async def test_what_is_overtaken_is_not_taken_up_while_it_is_thrown_away(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowStorage(scene.storage)
    remove = shutil.rmtree

    def remove_late(path: Path, ignore_errors: bool = False) -> None:
        if path.name == "2":
            slow.gate.set()  # the first upload ends while the second one is being thrown away
            time.sleep(0.3)
        remove(path, ignore_errors=ignore_errors)

    async with scene.uploads(slow) as uploads:
        for step in (1, 2):
            make(scene.out, step)
            await uploads.offer(step)
        make(scene.out, 3)
        monkeypatch.setattr(checkpoint_uploads.shutil, "rmtree", remove_late)
        await uploads.offer(3)
        await scene.idle(uploads)
    assert await scene.steps() == {1, 3}
    assert not [line for line in await scene.said() if "could not be stored" in line]
