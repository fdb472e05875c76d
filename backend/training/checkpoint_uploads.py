"""Brings the checkpoints of a running training to storage: one at a time, and of those that wait the newest."""

import asyncio
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import select

from backend.jobs.errors import LeaseLost
from backend.jobs.models import Job
from backend.jobs.running import JobRun
from backend.kit.errors import DomainError
from backend.projects.models import Project
from backend.storage import Storage, StorageUnavailable
from backend.training import checkpoint_store
from backend.training.models import FineTuning

log = logging.getLogger(__name__)

# Well below the hour after which a stored file without a row counts as lost (see cleanup.py).
_MOST_SECONDS = 1800.0
# How long an attempt that ends before its run waits for its last checkpoint to be stored.
_LAST_SECONDS = 60.0
_MB = 1024 * 1024


class CheckpointUploads:
    """`async with` around the training of one attempt; `offer` each checkpoint that the trainer tells of.

    Nothing here fails a run: a checkpoint that cannot be stored is said in the log, and the next one is tried. When the
    attempt ends and its run goes on (the trainer was killed, the worker stops), the last checkpoint is stored first.
    """

    def __init__(
        self,
        run: JobRun,
        storage: Storage,
        project: Project,
        fine_tuning: FineTuning,
        out: Path,
        *,
        max_mb: int,
        grace_seconds: float,
    ) -> None:
        self._run = run
        self._storage = storage
        self._fine_tuning = fine_tuning
        self._out = out
        self._prefix = checkpoint_store.prefix_of(project, fine_tuning, run.claim.fence)
        # Files linked here stay while they are uploaded, whatever the trainer prunes meanwhile.
        self._aside = out.with_name("uploading")
        self._max_mb = max_mb
        self._grace_seconds = grace_seconds
        self._waiting: int | None = None
        self._newest = -1
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._said_too_large = False

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(shutil.rmtree, self._aside, True)
        # An attempt that ends before its first checkpoint has the one that it began from, which is stored already.
        self._newest = await checkpoint_store.newest_named(self._run, self._fine_tuning)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and await self._goes_on(error):
                await self._store_last(
                    self._grace_seconds if isinstance(error, asyncio.CancelledError) else _LAST_SECONDS
                )
        finally:
            self._over = True
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
            await asyncio.to_thread(shutil.rmtree, self._aside, True)

    async def offer(self, step: int) -> None:
        """A new checkpoint: takes hold of its files, and leaves the rest to a task of its own. Never raises."""
        if self._over or not self._max_mb or step <= self._newest:
            return
        try:
            size = await asyncio.to_thread(_link, self._out, self._aside / str(step), step)
        except OSError as error:
            log.warning("the checkpoint of step %d cannot be held for its upload: %s", step, error)
            await asyncio.to_thread(shutil.rmtree, self._aside / str(step), True)
            return
        if size > self._max_mb * _MB:
            await self._pass_over(step, size)
            return
        overtaken, self._waiting = self._waiting, step
        self._newest = step
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        if overtaken is not None:
            await asyncio.to_thread(shutil.rmtree, self._aside / str(overtaken), True)

    async def _work(self) -> None:
        while (step := self._waiting) is not None and not self._over:
            self._waiting = None
            try:
                await self._upload(step)
            except Exception:  # whatever it is, the run goes on, and the next checkpoint is tried
                log.exception("the checkpoint of step %d is not stored", step)
            finally:
                await asyncio.to_thread(shutil.rmtree, self._aside / str(step), True)

    async def _upload(self, step: int) -> None:
        folder = self._aside / str(step)
        keys: list[str] = []
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                files = await asyncio.to_thread(
                    checkpoint_store.describe, folder, step, self._fine_tuning, self._prefix
                )
                for file in files:
                    keys.append(file.file_key)
                    await self._storage.put_file(file.file_key, folder / file.filename.partition("/")[2])
        except asyncio.CancelledError:
            await self._discard(keys)
            raise
        except (StorageUnavailable, TimeoutError, OSError, ValueError, KeyError) as error:
            log.warning("the checkpoint of step %d is not stored: %r", step, error)
            await self._discard(keys)
            await self._say(
                f"The checkpoint of step {step} could not be stored; the next one is tried. Until then another worker "
                "would go on from an earlier one."
            )
            return
        try:
            superseded = await checkpoint_store.name(self._run, self._fine_tuning, step, files)
        except LeaseLost:
            self._over = True
            await self._discard(keys)
            return
        # Any other error leaves open whether the rows were committed: files without rows are swept up later.
        await self._discard(superseded)

    async def _goes_on(self, error: BaseException) -> bool:
        """Whether another attempt follows one that ended by `error`."""
        if isinstance(error, LeaseLost) or self._over:
            return False
        if isinstance(error, DomainError):
            return error.retryable
        if not isinstance(error, asyncio.CancelledError):
            return isinstance(error, OSError)
        with suppress(Exception):
            async with self._run.reading() as session:
                asked = select(Job.cancel_requested_at).where(
                    Job.id == self._run.claim.id, Job.fence == self._run.claim.fence
                )
                row = (await session.execute(asked)).one_or_none()
            return row is not None and row[0] is None
        return False

    async def _store_last(self, seconds: float) -> None:
        """What the trainer saved last, which it may not have told any more."""
        try:
            async with asyncio.timeout(seconds):
                await self.offer(checkpoint_store.newest_step(self._out))
                if self._task is not None:
                    await asyncio.shield(self._task)
        except TimeoutError:
            log.warning("the last checkpoint is not stored: there was no more time")

    async def _pass_over(self, step: int, size: int) -> None:
        await asyncio.to_thread(shutil.rmtree, self._aside / str(step), True)
        if self._said_too_large:
            return
        self._said_too_large = True
        await self._say(
            f"The checkpoints of this run have {size / _MB:,.0f} MB, more than CHECKPOINT_UPLOAD_MAX_MB "
            f"({self._max_mb:,} MB), so they stay on this worker's disk: no other worker can go on from them."
        )

    async def _say(self, message: str) -> None:
        with suppress(Exception):
            await self._run.emit("log", {"message": message})

    async def _discard(self, keys: list[str]) -> None:
        try:
            async with asyncio.timeout(self._grace_seconds):
                await self._storage.delete(keys)
        except (StorageUnavailable, TimeoutError) as error:
            log.warning("%d files of checkpoints stay in storage until they are swept up: %r", len(keys), error)


def _link(out: Path, held: Path, step: int) -> int:
    """Gives the files of a checkpoint, and what lies beside it, second names in `held`; returns their bytes.

    The trainer writes each file once and renames it into place, so a second name never shows half of anything.
    """
    shutil.rmtree(held, ignore_errors=True)
    checkpoint = out / f"{checkpoint_store.PREFIX}{step}"
    paths = [path for path in checkpoint.rglob("*") if path.is_file()]
    paths += [out / name for name in checkpoint_store.COMPANIONS if (out / name).is_file()]
    size = 0
    for path in paths:
        target = held / path.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            shutil.copyfile(path, target)
        size += target.stat().st_size
    return size
