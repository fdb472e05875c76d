"""The project's chunks as generation sees them: all of them as numbers, and their texts a window at a time."""

from array import array
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select, tuple_

from backend.contents.models import Chunk, Content
from backend.datasets.models import Example
from backend.datasets.planning import statements
from backend.jobs.running import JobRun
from backend.kit.db import is_one_of

# Chunks whose texts are in memory at once, beside those that are being asked.
WINDOW = 64
_OUTLINE_WINDOW = 500
# What a prompt lists of the questions that a chunk has: more of them would crowd out the passage.
_MOST_AVOIDED = 40
_LONGEST_AVOIDED = 300


@dataclass(frozen=True, slots=True)
class Outline:
    """All chunks of a project in reading order, some twenty bytes each: ids, documents, and how much each holds."""

    ids: "array[int]" = field(default_factory=lambda: array("q"))
    content_ids: "array[int]" = field(default_factory=lambda: array("q"))
    weights: "array[int]" = field(default_factory=lambda: array("i"))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def weight(self) -> int:
        return sum(self.weights)

    def only(self, chosen: Sequence[int]) -> "Outline":
        """The chunks at these indexes."""
        return Outline(
            array("q", (self.ids[index] for index in chosen)),
            array("q", (self.content_ids[index] for index in chosen)),
            array("i", (self.weights[index] for index in chosen)),
        )


@dataclass(frozen=True, slots=True)
class Source:
    """One chunk with its text, just before it is asked. `avoid` holds the questions that it already has."""

    id: int
    content_id: int
    chunk_index: int
    text: str
    meta: dict[str, Any]
    language: str | None
    avoid: tuple[str, ...]


async def outline(run: JobRun) -> Outline:
    """Weighs the chunks by the statements that they do not share with the chunk before; each weighs at least 1.

    All of the project's, or those of the contents that the job names.
    """
    found = Outline()
    wanted = run.params.get("content_ids")
    chosen = [] if wanted is None else [is_one_of(Chunk.content_id, wanted)]
    last = (-1, -1)
    before: frozenset[int] = frozenset()
    while True:
        async with run.reading() as session:
            rows = (
                await session.execute(
                    select(Chunk.id, Chunk.content_id, Chunk.chunk_index, Chunk.text)
                    .where(
                        Chunk.project_id == run.project_id,
                        *chosen,
                        tuple_(Chunk.content_id, Chunk.chunk_index) > tuple_(*last),
                    )
                    .order_by(Chunk.content_id, Chunk.chunk_index)
                    .limit(_OUTLINE_WINDOW)
                )
            ).all()
        for row in rows:
            said = statements(row.text)
            found.ids.append(row.id)
            found.content_ids.append(row.content_id)
            # What overlaps with the chunk before is that one's to ask about.
            found.weights.append(max(1, len(said - before)))
            before = said
        if len(rows) < _OUTLINE_WINDOW:
            return found
        last = (rows[-1].content_id, rows[-1].chunk_index)


async def texts(
    run: JobRun, chunk_ids: Sequence[int], *, dataset_id: int | None = None
) -> AsyncGenerator[Source, None]:
    """The chunks in the given order, read WINDOW at a time as they are asked for; those deleted meanwhile are left out.

    With a dataset, each comes with the questions that the dataset already has about it.
    """
    for start in range(0, len(chunk_ids), WINDOW):
        ids = list(chunk_ids[start : start + WINDOW])
        async with run.reading() as session:
            rows = await session.execute(
                select(Chunk.id, Chunk.content_id, Chunk.chunk_index, Chunk.text, Chunk.meta, Content.language)
                .join(Content, Content.id == Chunk.content_id)
                # By project too: no id, however it came here, brings another owner's text into a prompt.
                .where(is_one_of(Chunk.id, ids), Chunk.project_id == run.project_id)
            )
            present = {row.id: row for row in rows}
            known: dict[int, list[str]] = defaultdict(list)
            if dataset_id is not None:
                asked = await session.execute(
                    select(Example.chunk_id, func.left(Example.instruction, _LONGEST_AVOIDED))
                    .join(Chunk, Chunk.id == Example.chunk_id)
                    .where(is_one_of(Chunk.id, ids), Example.dataset_id == dataset_id)
                    .where(Example.split != "preview", Example.instruction != "")
                    .order_by(Example.is_valid.desc(), Example.id.desc())
                )
                for chunk_id, question in asked:
                    assert chunk_id is not None
                    known[chunk_id].append(question)
        for chunk_id in ids:
            if (row := present.get(chunk_id)) is not None:
                avoid = tuple(dict.fromkeys(known.get(chunk_id, ())))[:_MOST_AVOIDED]
                yield Source(row.id, row.content_id, row.chunk_index, row.text, row.meta, row.language, avoid)
