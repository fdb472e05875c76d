"""What a run delivered: kept in storage under its fence, and brought back to a worker that only has to prove it."""

import asyncio
import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import delete, update

from backend.jobs.errors import LeaseLost
from backend.jobs.running import JobRun
from backend.projects import service as projects
from backend.projects.models import Project
from backend.storage import BlobNotFound, Storage, StorageUnavailable, file_digest
from backend.training import queries
from backend.training.models import Artifact, FineTuning

log = logging.getLogger(__name__)

CONFIG = "training_config.json"
# For how long a storage that is away is waited for, each time a job gets so far, and how often it is asked.
_PATIENCE_SECONDS = 1800.0
_PAUSE_SECONDS = 10.0


async def keep_patiently(
    run: JobRun, storage: Storage, project: Project, fine_tuning: FineTuning, out: Path, metrics: dict[str, Any]
) -> None:
    """As `keep`, while the storage is away for less than half an hour: hours of training may hang on it.

    The attempts of a job would be used up in minutes. Raises StorageUnavailable, LeaseLost.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    told = False
    while True:
        try:
            await keep(run, storage, project, fine_tuning, out, metrics)
            return
        except StorageUnavailable:
            if time.monotonic() + _PAUSE_SECONDS > deadline:
                raise
        if not told:
            told = True
            message = "The training is done, and the file storage does not answer: what it delivered waits here for it."
            await run.emit("log", {"message": message})
        await asyncio.sleep(_PAUSE_SECONDS)


async def keep(
    run: JobRun, storage: Storage, project: Project, fine_tuning: FineTuning, out: Path, metrics: dict[str, Any]
) -> None:
    """Stores the files of `out`/adapter and gives them rows; an attempt that lost its job leaves none behind."""
    files = sorted(path for path in (out / "adapter").iterdir() if path.is_file())
    files += [out / CONFIG]
    # The attempt is part of the key: a zombie that is still writing cannot touch the files of its successor.
    prefix = f"{projects.folder_of(project)}/runs/{fine_tuning.public_id}/{run.claim.fence}"
    artifacts = [
        Artifact(
            fine_tuning_id=fine_tuning.id,
            role=queries.ADAPTER,
            filename=path.name,
            size_bytes=path.stat().st_size,
            sha256=await asyncio.to_thread(file_digest, path),
            file_key=f"{prefix}/{path.name}",
        )
        for path in files
    ]
    is_stored = False
    try:
        for path, artifact in zip(files, artifacts, strict=True):
            await storage.put_file(artifact.file_key, path)
        is_stored = True
        previous = await _name(run, fine_tuning, artifacts, metrics)
    except BaseException as error:
        # A connection that is lost in the commit leaves open whether the rows are there: the sweep finds out later.
        if not is_stored or isinstance(error, LeaseLost):
            # What stays is swept up later.
            with suppress(StorageUnavailable):
                await storage.delete([artifact.file_key for artifact in artifacts])
        raise
    with suppress(StorageUnavailable):
        await storage.delete(previous)


async def _name(
    run: JobRun, fine_tuning: FineTuning, artifacts: Sequence[Artifact], metrics: dict[str, Any]
) -> list[str]:
    """Gives the stored files their rows, in place of earlier ones; returns the keys of these. Raises LeaseLost."""
    async with run.writing() as session:
        earlier = await queries.list_artifacts(session, fine_tuning.id, queries.ADAPTER)
        await session.execute(delete(Artifact).where(Artifact.id.in_([item.id for item in earlier])))
        session.add_all(artifacts)
        await session.execute(update(FineTuning).where(FineTuning.id == fine_tuning.id).values(metrics=metrics))
    return [item.file_key for item in earlier]


async def bring_back(run: JobRun, storage: Storage, fine_tuning: FineTuning, out: Path) -> dict[str, Any] | None:
    """The metrics of a training that an earlier attempt finished, with its files in `out`; None when it has to train.

    Files that are here with their hashes are not fetched again. Raises StorageUnavailable.
    """
    async with run.reading() as session:
        kept = await queries.list_artifacts(session, fine_tuning.id, queries.ADAPTER)
        metrics = dict((await session.get_one(FineTuning, fine_tuning.id, populate_existing=True)).metrics)
    if not kept:
        return None
    for artifact in kept:
        path = out / artifact.filename if artifact.filename == CONFIG else out / "adapter" / artifact.filename
        if path.is_file() and await asyncio.to_thread(file_digest, path) == artifact.sha256:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            await storage.save_to(artifact.file_key, path)
        except BlobNotFound:
            path.unlink(missing_ok=True)
        if not path.is_file() or await asyncio.to_thread(file_digest, path) != artifact.sha256:
            log.warning("the stored file %s of run %s is damaged", artifact.filename, fine_tuning.public_id)
            await run.emit("log", {"message": f"The stored file {artifact.filename} is damaged: it is made again."})
            path.unlink(missing_ok=True)
            # A result that says that it is complete would be believed.
            (out / "metrics.json").unlink(missing_ok=True)
            await asyncio.to_thread(shutil.rmtree, out / "adapter", True)
            return None
    return metrics
