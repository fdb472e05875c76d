"""What a new example is held against: the reference files of the project, and all examples that are kept already."""

import asyncio
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from sqlalchemy import select

from backend.contents.models import Content
from backend.contents.records.row import read_rows
from backend.datasets.decontamination import Contamination, ReferenceSet
from backend.datasets.keeping import CONTAMINATED, NEAR_DUPLICATE, question_of
from backend.datasets.near_duplicates import NearDuplicateIndex, normalised
from backend.jobs.running import JobRun
from backend.storage import BlobNotFound, Storage

_UUID_BYTES = 16


class Screening:
    """Refuses what is close to a reference row, then what is close to an example that it has let pass.

    Some hundred bytes of memory for each of both; the texts of examples are in a file of the index's own.
    """

    def __init__(self, references: "References") -> None:
        self._references = references
        self._index = NearDuplicateIndex()
        # The public ids of those that were looked at, one after the other: their place is their key in the index.
        self._ids = bytearray()

    @classmethod
    async def load(cls, run: JobRun, storage: Storage) -> Self:
        """Reads the project's reference files."""
        return cls(await load_references(run, storage))

    @property
    def reference_rows(self) -> int:
        return len(self._references)

    def refuse(self, rows: Sequence[tuple[UUID, str, str]]) -> list[dict[str, Any] | None]:
        """For each (public id, question, answer): None when it may be kept, or the reason with what it is close to."""
        found = self._references.refuse([(question, answer) for _, question, answer in rows])
        clean = [place for place, why in enumerate(found) if why is None]
        firsts = self._index.add_many(
            [self._key(rows[place][0]) for place in clean], [normalised(*rows[place][1:]) for place in clean]
        )
        for place, first in zip(clean, firsts, strict=True):
            if first is not None:
                found[place] = {"reason": NEAR_DUPLICATE, "duplicate_of": str(self._public_id(first))}
        return found

    def _key(self, public_id: UUID) -> int:
        self._ids += public_id.bytes
        return len(self._ids) // _UUID_BYTES - 1

    def _public_id(self, key: int) -> UUID:
        return UUID(bytes=bytes(self._ids[key * _UUID_BYTES : (key + 1) * _UUID_BYTES]))


class References:
    """The rows of the project's reference files (name, JSON lines), with the place of each."""

    def __init__(self, files: Sequence[tuple[str, Path]]) -> None:
        self._names: list[str] = []
        self._starts: list[int] = []
        self._lines = array("q")
        self._set = ReferenceSet.of(self._read(files)) if files else None

    def __len__(self) -> int:
        return len(self._lines)

    def refuse(self, examples: Sequence[tuple[str, str]]) -> list[dict[str, Any] | None]:
        if self._set is None or not examples:
            return [None] * len(examples)
        return [self._why(match) for match in self._set.match_many(examples)]

    def _why(self, match: Contamination | None) -> dict[str, Any] | None:
        if match is None:
            return None
        file = self._names[bisect_right(self._starts, match.reference) - 1]
        place = {"kind": match.kind, "file": file, "line": self._lines[match.reference]}
        return {"reason": CONTAMINATED, "contaminated_by": place}

    def _read(self, files: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, str]]:
        for name, path in files:
            self._names.append(name)
            self._starts.append(len(self._lines))
            with path.open("rb") as file:
                for row in read_rows(file):
                    self._lines.append(row.line)
                    yield question_of(row.instruction, row.input), row.output


async def load_references(run: JobRun, storage: Storage) -> References:
    """The project's reference files. One that was deleted meanwhile is left out."""
    async with run.reading() as session:
        contents = (
            await session.scalars(
                select(Content)
                .where(Content.project_id == run.project_id, Content.purpose == "reference")
                .order_by(Content.id)
            )
        ).all()
    with tempfile.TemporaryDirectory(prefix="finetuneflow-references-") as folder:
        files: list[tuple[str, Path]] = []
        for content in contents:
            if content.text_key is not None:
                path = Path(folder) / f"{content.id}.jsonl"
                try:
                    await storage.save_to(content.text_key, path)
                except BlobNotFound:
                    continue
                files.append((content.name, path))
        return await asyncio.to_thread(References, files)
