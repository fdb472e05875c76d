"""The import job: the normalised rows of an uploaded file become examples of the project's current dataset."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from backend.contents.models import Content
from backend.contents.records.row import Row, read_rows
from backend.contents.token_counting import TokenCounter
from backend.datasets import queries
from backend.datasets.editing import MARKED
from backend.datasets.fingerprints import fingerprint
from backend.datasets.keeping import DUPLICATE, question_of
from backend.datasets.models import Dataset, Example
from backend.datasets.row_splitting import EVAL, TRAIN, RowSplit
from backend.datasets.screening import References, load_references
from backend.datasets.strategies.base import InvalidReason
from backend.jobs.running import JobRun
from backend.kit.errors import DatabaseUnavailable
from backend.projects import queries as project_queries
from backend.projects.models import Project
from backend.storage import BlobNotFound, Storage

_BATCH_ROWS = 1_000
_BATCH_CHARACTERS = 4_000_000
_PINNED_AT_ONCE = 2_000
# How often a batch looks for the current dataset again when another one became current meanwhile.
_LOOKS = 10


async def import_rows(
    run: JobRun, storage: Storage, counter: TokenCounter, *, train_share: Callable[[Project], float]
) -> dict[str, Any]:
    """Writes a file's rows in batches; a run that was cut off goes on after the last batch that was committed.

    Each batch goes into the dataset that is current at that moment, so that a generation that starts or fails
    meanwhile loses none. Returns what the job shows; a file that was deleted ends it early.
    """
    async with run.reading() as session:
        project = await project_queries.get_by_id(session, run.project_id)
        content = await session.get(Content, int(run.params["content_id"]))
    if content is None or content.text_key is None:
        return _deleted()
    with tempfile.TemporaryDirectory(prefix="finetuneflow-import-") as folder:
        path = Path(folder) / "rows.jsonl"
        try:
            await storage.save_to(content.text_key, path)
        except BlobNotFound:
            async with run.reading() as session:
                if await session.get(Content, content.id) is not None:
                    raise
            return _deleted()
        references = await load_references(run, storage)
        split = await _divide(run, path, content, train_share(project))
        work = _Work(run, content, counter, references, split)
        return await _write(work, path)


@dataclass(slots=True)
class _Work:
    run: JobRun
    content: Content
    counter: TokenCounter
    references: References
    split: RowSplit | None  # None: every row goes to the side that the upload names

    @property
    def total(self) -> int:
        return int((self.content.import_report or {})["valid"])


async def _write(work: _Work, path: Path) -> dict[str, Any]:
    done = int((work.content.import_report or {}).get("imported", 0))
    with path.open("rb") as file:
        batches = _batches(read_rows(file), skip=done)
        while batch := await asyncio.to_thread(next, batches, None):
            await work.run.progress(100 * done / work.total, f"Row {done}/{work.total}")
            values = await asyncio.to_thread(_values, work, batch)
            if not await _keep(work, values):
                return _deleted()
            done += len(batch)
    async with work.run.reading() as session:
        counts = await _counts(session, work.content)
    return {"rows": work.total, "imported": done, **counts}


def _batches(rows: Iterator[Row], *, skip: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for number, row in enumerate(rows):
        if number < skip:
            continue
        batch.append(row)
        size += len(row.instruction) + len(row.input) + len(row.output) + len(row.rejected or "")
        size += sum(len(turn["content"]) for turn in row.history or ())
        if len(batch) == _BATCH_ROWS or size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _divide(run: JobRun, path: Path, content: Content, train_share: float) -> RowSplit | None:
    """Decides which rows are held out, with what the current dataset has on either side already."""
    if run.params["split"] != "auto":
        return None
    split = RowSplit(train_share)

    def add_all() -> None:
        with path.open("rb") as file:
            for row in read_rows(file):
                split.add(row, _fingerprint(row), counts=not _is_too_short(row.output))

    await asyncio.to_thread(add_all)
    async with run.reading() as session:
        dataset = await queries.find_current(session, run.project_id)
        if dataset is not None:
            columns = (Example.instruction, Example.input, Example.output, Example.history)
            found = await session.stream(
                select(*columns, Example.fingerprint, Example.split, Example.content_id, Example.source).where(
                    Example.dataset_id == dataset.id, Example.is_valid, Example.split.in_((TRAIN, EVAL))
                )
            )
            async for rows in found.partitions(_PINNED_AT_ONCE):
                for row in rows:
                    is_own = row.source == "imported" and row.content_id == content.id
                    split.pin(row, row.fingerprint, row.split, is_own=is_own)
    await asyncio.to_thread(split.decide)
    return split


def _values(work: _Work, batch: Sequence[Row]) -> list[dict[str, Any]]:
    """The columns of a batch's examples, but for the dataset and what it knows already."""
    tokens = work.counter.count_many([_all_text(row) for row in batch])
    refused = work.references.refuse([(question_of(row.instruction, row.input), row.output) for row in batch])
    values = []
    for row, count, why in zip(batch, tokens, refused, strict=True):
        meta: dict[str, Any] = {"line": row.line, "file": work.content.name}
        reason: str | None = None
        if _is_too_short(row.output):
            reason = InvalidReason.OUTPUT_TOO_SHORT
        elif why is not None:
            reason = why["reason"]
            meta |= {key: value for key, value in why.items() if key != "reason"}
        values.append(
            {
                "public_id": uuid7(),
                "content_id": work.content.id,
                "source": "imported",
                "split": work.split.side(row) if work.split is not None else work.run.params["split"],
                "instruction": row.instruction,
                "input": row.input,
                "output": row.output,
                "rejected": row.rejected,
                "history": row.history,
                "is_valid": reason is None,
                "invalid_reason": reason,
                "token_count": count,
                "fingerprint": _fingerprint(row),
                "meta": meta,
            }
        )
    return values


async def _keep(work: _Work, values: list[dict[str, Any]]) -> bool:
    """Commits a batch together with how far the import is; False when the file was deleted meanwhile."""
    for _ in range(_LOOKS):
        async with work.run.writing() as session:
            dataset = await _locked_current(session, work.run.project_id)
            if dataset is not None:
                return await _insert(session, work, dataset, values)
        await _make_dataset(work.run)
    raise DatabaseUnavailable("The project's datasets change too often. Try again in a moment.")


async def _insert(session: AsyncSession, work: _Work, dataset: Dataset, values: list[dict[str, Any]]) -> bool:
    content = await session.scalar(
        select(Content)
        .where(Content.id == work.content.id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    if content is None:
        return False
    known = await _taken(session, dataset, [value["fingerprint"] for value in values])
    for value in values:
        if value["is_valid"] and value["fingerprint"] in known:
            value["is_valid"], value["invalid_reason"] = False, DUPLICATE
        known.add(value["fingerprint"])
        value["dataset_id"] = dataset.id
    await session.execute(insert(Example), values)
    report = content.import_report or {}
    content.import_report = {**report, "imported": int(report.get("imported", 0)) + len(values)}
    if dataset.status == "processing" and await queries.find_making(session, dataset) is None:
        dataset.status = "ready"  # it held previews alone
    await session.flush()
    return True


async def _taken(session: AsyncSession, dataset: Dataset, fingerprints: Sequence[str]) -> set[str]:
    """Those of the fingerprints that a valid example has, or one that a person marked invalid.

    What only a check refused of a model's examples may be brought in: a person stands for it.
    """
    rows = await session.scalars(
        select(Example.fingerprint).where(
            Example.dataset_id == dataset.id,
            Example.split != "preview",
            Example.fingerprint.in_(fingerprints),
            Example.is_valid | (Example.invalid_reason == MARKED),
        )
    )
    return set(rows.all())


async def _locked_current(session: AsyncSession, project_id: int) -> Dataset | None:
    """The current dataset, locked; None if there is none, or another one keeps becoming current."""
    found = await queries.find_current(session, project_id)
    for _ in range(_LOOKS):
        if found is None:
            return None
        locked = await queries.lock(session, found.id)
        # While this waited for the lock, a generation may have begun or failed.
        found = await queries.find_current(session, project_id)
        if locked is not None and found is not None and found.id == locked.id:
            return locked
    return None


async def _make_dataset(run: JobRun) -> None:
    """Makes the project's first dataset, in a transaction of its own: the project's row is locked before no other."""
    async with run.writing() as session:
        project = await session.scalar(
            select(Project).where(Project.id == run.project_id).with_for_update(key_share=True)
        )
        if project is not None and await queries.find_current(session, project.id) is None:
            session.add(Dataset(project_id=project.id, name=project.name, status="ready"))
            await session.flush()


async def _counts(session: AsyncSession, content: Content) -> dict[str, Any]:
    """What became of the rows, by what is in the current dataset."""
    dataset = await queries.find_current(session, content.project_id)
    if dataset is None:
        return {"valid": 0, "train": 0, "eval": 0, "invalid": {}}
    rows = await session.execute(
        select(Example.split, Example.is_valid, Example.invalid_reason, func.count())
        .where(Example.dataset_id == dataset.id, Example.content_id == content.id, Example.source == "imported")
        .group_by(Example.split, Example.is_valid, Example.invalid_reason)
    )
    sides: Counter[str] = Counter()
    invalid: Counter[str] = Counter()
    for side, is_valid, reason, count in rows:
        if is_valid:
            sides[side] += count
        else:
            invalid[reason or "invalid"] += count
    return {"valid": sides.total(), "train": sides[TRAIN], "eval": sides[EVAL], "invalid": dict(invalid)}


def _deleted() -> dict[str, Any]:
    return {"rows": 0, "imported": 0, "message": "The file was deleted before all its rows were imported."}


def _is_too_short(output: str) -> bool:
    """An answer of one word is a fair one ('Paris', 'B', '42'); one without a letter or digit says nothing."""
    return not any(character.isalnum() for character in output)


def _fingerprint(row: Row) -> str:
    return fingerprint(row.instruction, row.input, row.output, row.history, row.rejected)


def _all_text(row: Row) -> str:
    turns = [turn["content"] for turn in row.history or ()]
    return "\n".join(part for part in (*turns, row.instruction, row.input, row.output) if part)
