"""Adapters of finished runs on this machine's disk: fetched once from storage, checked, and bounded in size."""

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy import select

from backend.kit.config import Settings
from backend.kit.db import Database
from backend.storage import Storage, file_digest
from backend.training.errors import AnswerFailed
from backend.training.models import Artifact, FineTuning

log = logging.getLogger(__name__)

_ASIDE = ".part-"
_MB = 1024 * 1024


def cache_folder(settings: Settings) -> Path:
    return settings.data_dir / "serving" / "adapters"


def name_of(fine_tuning: FineTuning, artifacts: Sequence[Artifact]) -> str:
    """Another one as soon as a file is another: `<public id>-<digest of all files>`."""
    listed = "".join(f"{item.filename}\0{item.sha256}\0" for item in sorted(artifacts, key=lambda item: item.filename))
    return f"{fine_tuning.public_id}-{hashlib.sha256(listed.encode()).hexdigest()[:16]}"


async def ensure(
    settings: Settings, storage: Storage, fine_tuning: FineTuning, artifacts: Sequence[Artifact], *, keep: set[str]
) -> Path:
    """The folder with a run's files, the latest used; others but those named in `keep` go when space is short.

    Raises AnswerFailed for a file that is not what was stored, StorageUnavailable, BlobNotFound.
    """
    folder = cache_folder(settings) / name_of(fine_tuning, artifacts)
    if not folder.is_dir():
        aside = folder.with_name(f"{folder.name}{_ASIDE}{uuid4().hex}")
        try:
            await _fetch(storage, artifacts, aside)
            await asyncio.to_thread(_put_in_place, aside, folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, aside, True)
        await asyncio.to_thread(_bound, folder.parent, settings.serving_cache_mb * _MB, keep | {folder.name})
    await asyncio.to_thread(os.utime, folder)
    return folder


async def forget_deleted(db: Database, settings: Settings) -> int:
    """Deletes what is left of runs that are no more; returns how many. A deleted model is on no disk for long."""
    found = {path: _public_id(path) for path in cache_folder(settings).glob("*")}
    if not found:
        return 0
    async with db.transaction() as session:
        wanted = {public_id for public_id in found.values() if public_id is not None}
        rows = await session.scalars(select(FineTuning.public_id).where(FineTuning.public_id.in_(wanted)))
        alive = set(rows.all())
    gone = [path for path, public_id in found.items() if public_id not in alive]
    for path in gone:
        await asyncio.to_thread(shutil.rmtree, path, True)
    return len(gone)


async def _fetch(storage: Storage, artifacts: Sequence[Artifact], folder: Path) -> None:
    folder.mkdir(parents=True)
    for artifact in artifacts:
        path = folder / Path(artifact.filename).name
        await storage.save_to(artifact.file_key, path)
        if await asyncio.to_thread(file_digest, path) != artifact.sha256:
            raise AnswerFailed(reason=f"its file {artifact.filename} is damaged in storage. Train it again.")


def _put_in_place(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError:
        # Another question of the same model was faster.
        if not folder.is_dir():
            raise


def _bound(parent: Path, limit_bytes: int, keep: set[str]) -> None:
    """Deletes the folders that were not used for the longest time until the rest is within the limit."""
    folders = sorted(
        (path for path in parent.glob("*") if _ASIDE not in path.name), key=lambda path: path.stat().st_mtime
    )
    sizes = {path: sum(file.stat().st_size for file in path.glob("*")) for path in folders}
    total = sum(sizes.values())
    for path in folders:
        if total <= limit_bytes:
            return
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
            log.info("adapter %s left the disk for lack of space", path.name)


def _public_id(path: Path) -> UUID | None:
    try:
        return UUID(path.name[:36])
    except ValueError:
        return None
