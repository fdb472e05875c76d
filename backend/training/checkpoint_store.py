"""Checkpoints of running fine-tunings in storage: named under the run's fence, fetched by their hashes, removed."""

import asyncio
import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs.models import Job
from backend.jobs.running import JobRun
from backend.kit.db import Database
from backend.projects import service as projects
from backend.projects.models import Project
from backend.storage import BlobNotFound, Storage, StorageUnavailable, file_digest
from backend.training import queries, statuses
from backend.training.models import Artifact, FineTuning

log = logging.getLogger(__name__)

ROLE = "checkpoint"
# One more than the newest: it is the way out when that one is damaged.
KEPT = 2
PREFIX, MANIFEST = "checkpoint-", "manifest.json"
# Beside the checkpoint: what the run began with, the base model's score, and how the run is cut to fit in memory.
COMPANIONS = ("training_config.json", "baseline.json", "memory.json")
_FOLDER = "checkpoints"
_ENDED_AT_ONCE = 1000


class Damaged(Exception):
    """A stored checkpoint that is not what was stored."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A named checkpoint with all its files."""

    step: int
    files: Sequence[Artifact]


def describe(folder: Path, step: int, fine_tuning: FineTuning, prefix: str) -> list[Artifact]:
    """The rows of a checkpoint's files, and of what lies beside it in `folder`; nothing is stored yet.

    Its own files have the hashes that the trainer sealed them with: what has changed since is refused by whoever
    fetches it. Raises OSError, ValueError and KeyError for what is no checkpoint.
    """
    manifest = folder / f"{PREFIX}{step}" / MANIFEST
    sealed: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    digests = {manifest.parent / name: digest for name, digest in sealed.items()}
    paths = [*digests, manifest, *(folder / name for name in COMPANIONS if (folder / name).is_file())]
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    return [
        Artifact(
            fine_tuning_id=fine_tuning.id,
            role=ROLE,
            filename=f"{step}/{names[path]}",
            size_bytes=path.stat().st_size,
            sha256=digests.get(path) or file_digest(path),
            file_key=f"{prefix}/{step}/{names[path]}",
        )
        for path in paths
    ]


def prefix_of(project: Project, fine_tuning: FineTuning, fence: int) -> str:
    """Where an attempt stores its checkpoints: no other attempt writes there."""
    return f"{_run_prefix(project, fine_tuning)}/{fence}/{_FOLDER}"


async def name(run: JobRun, fine_tuning: FineTuning, step: int, files: Sequence[Artifact]) -> list[str]:
    """Makes a checkpoint, whose files are all in storage, the run's newest; returns the keys that nothing names now.

    An attempt that got further than those before has earned its successors: these no longer count. Raises LeaseLost.
    """
    async with run.writing() as session:
        stored = await _find(session, fine_tuning.id)
        earlier = [item for item in stored if item.step < step][: KEPT - 1]
        kept = {file.id for item in earlier for file in item.files}
        rows = await queries.list_artifacts(session, fine_tuning.id, ROLE)
        gone = [row for row in rows if row.id not in kept]
        await session.execute(delete(Artifact).where(Artifact.id.in_([row.id for row in gone])))
        session.add_all(files)
        if not stored or stored[0].step < step:
            await session.execute(update(Job).where(Job.id == run.claim.id).values(attempts=1))
    named = {file.file_key for file in files}
    return [row.file_key for row in gone if row.file_key not in named]


async def newest_named(run: JobRun, fine_tuning: FineTuning) -> int:
    """The step of the newest checkpoint in storage, -1 without any."""
    async with run.reading() as session:
        stored = await _find(session, fine_tuning.id)
    return stored[0].step if stored else -1


async def bring_newest(run: JobRun, storage: Storage, fine_tuning: FineTuning, out: Path) -> None:
    """Puts the stored checkpoint into `out`, the trainer's folder, unless a whole one there is as new.

    A trainer that was through to its end has none left there, and needs none.
    Damaged ones are forgotten, and the run's log says so. Raises StorageUnavailable, LeaseLost.
    """
    if (out / "metrics.json").is_file():
        return
    async with run.reading() as session:
        stored = await _find(session, fine_tuning.id)
    for item in stored:
        if await asyncio.to_thread(_newest_whole, out) >= item.step:
            return
        try:
            await _fetch(storage, item, out)
        except (BlobNotFound, Damaged) as error:
            log.warning(
                "stored checkpoint of step %d of run %s is damaged: %r", item.step, fine_tuning.public_id, error
            )
            await _refuse(run, storage, item)
            await run.emit(
                "log", {"message": f"The stored checkpoint of step {item.step} is damaged and is passed over."}
            )
            continue
        log.info("run %s goes on from the stored checkpoint of step %d", fine_tuning.public_id, item.step)
        return
    if stored and await asyncio.to_thread(_newest_whole, out) < 0:
        await run.emit("log", {"message": "No whole checkpoint is left, so the training starts anew."})


async def clear_lost_uploads(run: JobRun, storage: Storage, project: Project, fine_tuning: FineTuning) -> int:
    """Deletes what earlier attempts stored and never named, nor can name any more; returns how many files."""
    async with run.reading() as session:
        named = await queries.stored_keys(session, fine_tuning.id)
    blobs = await storage.list_under(_run_prefix(project, fine_tuning))
    lost = [
        blob.key
        for blob in blobs
        if blob.key not in named and (_fence_of(blob.key) or run.claim.fence) < run.claim.fence
    ]
    await storage.delete(lost)
    return len(lost)


async def forget_ended(db: Database, storage: Storage) -> int:
    """Deletes the checkpoints of runs that are over, rows first; returns how many files."""
    ended = select(FineTuning.id).where(FineTuning.status.in_(statuses.ENDED))
    left = select(Artifact).where(Artifact.role == ROLE, Artifact.fine_tuning_id.in_(ended))
    async with db.transaction() as session:
        locked = left.order_by(Artifact.id).limit(_ENDED_AT_ONCE).with_for_update(skip_locked=True)
        rows = (await session.scalars(locked)).all()
        await session.execute(delete(Artifact).where(Artifact.id.in_([row.id for row in rows])))
    await storage.delete([row.file_key for row in rows])
    return len(rows)


def newest_step(out: Path) -> int:
    """The highest step that a checkpoint's folder in `out` is named by, -1 without any; whole or not."""
    return max((_step_of(path) for path in out.glob(f"{PREFIX}*")), default=-1)


def _newest_whole(out: Path) -> int:
    for path in sorted(out.glob(f"{PREFIX}*"), key=_step_of, reverse=True):
        if _is_whole(path):
            return _step_of(path)
    return -1


def _is_whole(folder: Path) -> bool:
    """As the trainer sees it: every file that the manifest names is there with its hash."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        files: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(file_digest(folder / name) == digest for name, digest in files.items())
    return False


def _step_of(folder: Path) -> int:
    suffix = folder.name.removeprefix(PREFIX)
    return int(suffix) if suffix.isdigit() else -1


async def _find(session: AsyncSession, fine_tuning_id: int) -> list[Stored]:
    """The run's named checkpoints, newest first."""
    by_step: dict[int, list[Artifact]] = defaultdict(list)
    for artifact in await queries.list_artifacts(session, fine_tuning_id, ROLE):
        by_step[int(artifact.filename.partition("/")[0])].append(artifact)
    return [Stored(step, by_step[step]) for step in sorted(by_step, reverse=True)]


async def _fetch(storage: Storage, stored: Stored, out: Path) -> None:
    """Into a folder aside first; the checkpoint is the last to appear in `out`. Raises BlobNotFound, Damaged."""
    aside = out.with_name("fetched.part")
    await asyncio.to_thread(shutil.rmtree, aside, True)
    try:
        digests: dict[str, str] = {}
        for artifact in stored.files:
            name = PurePosixPath(artifact.filename.partition("/")[2])
            path = aside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            await storage.save_to(artifact.file_key, path)
            digests[str(name)] = await asyncio.to_thread(file_digest, path)
            if digests[str(name)] != artifact.sha256:
                raise Damaged(str(name))
        _check_manifest(aside / f"{PREFIX}{stored.step}", digests)
        await asyncio.to_thread(_put_in_place, aside, out, stored.step)
    finally:
        await asyncio.to_thread(shutil.rmtree, aside, True)


def _check_manifest(folder: Path, digests: dict[str, str]) -> None:
    """Whether every file that the trainer sealed is among those that were fetched."""
    try:
        files: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(MANIFEST) from error
    for name, digest in files.items():
        if digests.get(f"{folder.name}/{name}") != digest:
            raise Damaged(name)


def _put_in_place(aside: Path, out: Path, step: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (aside / name).is_file():
            (aside / name).replace(out / name)
    target = out / f"{PREFIX}{step}"
    shutil.rmtree(target, ignore_errors=True)
    (aside / target.name).rename(target)


async def _refuse(run: JobRun, storage: Storage, stored: Stored) -> None:
    async with run.writing() as session:
        await session.execute(delete(Artifact).where(Artifact.id.in_([file.id for file in stored.files])))
    with suppress(StorageUnavailable):
        await storage.delete([file.file_key for file in stored.files])


def _run_prefix(project: Project, fine_tuning: FineTuning) -> str:
    return f"{projects.folder_of(project)}/runs/{fine_tuning.public_id}"


def _fence_of(key: str) -> int | None:
    """Of the attempt that stored a checkpoint's file; None for other files."""
    before, found, _ = key.partition(f"/{_FOLDER}/")
    fence = before.rpartition("/")[2]
    return int(fence) if found and fence.isdigit() else None
