"""What a dataset holds, counted: kept in its row until its examples change."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import Any

import orjson
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets.models import Dataset
from backend.kit.db import is_one_of

_COUNT = text("""
SELECT split, is_valid, invalid_reason, source, count(*), sum(token_count), min(token_count), max(token_count),
       sum(length(instruction) + length(input) + length(output) + coalesce(length(history::text), 0)
           + coalesce(length(rejected), 0)),
       sum(octet_length(instruction) + octet_length(input) + octet_length(output)
           + coalesce(octet_length(history::text), 0) + coalesce(octet_length(rejected), 0)),
       count(rejected)
FROM examples WHERE dataset_id = :dataset_id
GROUP BY split, is_valid, invalid_reason, source
ORDER BY split, is_valid, invalid_reason, source
""")
# Every so many examples the id of one is kept, in their order: a page far behind begins at the nearest.
ANCHOR_EVERY = 5_000
_ANCHORS = text(f"""
SELECT id FROM (
  SELECT id, row_number() OVER (ORDER BY id) - 1 AS place FROM examples WHERE dataset_id = :dataset_id
) AS placed
WHERE place % {ANCHOR_EVERY} = 0 ORDER BY id
""")  # noqa: S608  (constants of this file)
# A writer that came between the reading and this has made a new revision, and one that is at work now holds the row:
# in both cases somebody else counts again later.
_KEEP = text("""
UPDATE datasets SET stats = CAST(:stats AS jsonb), stats_revision = :seen
WHERE id = (SELECT id FROM datasets WHERE id = :dataset_id AND revision = :seen FOR NO KEY UPDATE SKIP LOCKED)
""")


@dataclass(frozen=True, slots=True)
class Group:
    """The examples of a dataset that have these four values in common."""

    split: str
    is_valid: bool
    invalid_reason: str | None
    source: str
    count: int
    tokens: int
    min_tokens: int
    max_tokens: int
    # Of the texts, and of earlier turns as JSON.
    characters: int
    size_bytes: int
    # Those with a rejected answer.
    preferences: int


@dataclass(slots=True)
class SplitStats:
    """Valid examples of one split, with their tokens."""

    count: int = 0
    tokens: int = 0
    min_tokens: int = 0
    max_tokens: int = 0
    # Those with a rejected answer, whose tokens are not among the others.
    preferences: int = 0

    @property
    def avg_tokens(self) -> int:
        return round(self.tokens / self.count) if self.count else 0

    def add(self, group: Group) -> None:
        self.min_tokens = min(self.min_tokens, group.min_tokens) if self.count else group.min_tokens
        self.max_tokens = max(self.max_tokens, group.max_tokens)
        self.count += group.count
        self.tokens += group.tokens
        self.preferences += group.preferences


@dataclass(slots=True)
class DatasetStats:
    """Counts of a dataset's train and eval examples; previews are counted apart."""

    valid: int = 0
    invalid: int = 0
    preview: int = 0
    by_split: dict[str, SplitStats] = field(default_factory=lambda: {"train": SplitStats(), "eval": SplitStats()})
    validation_errors: dict[str, int] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    # The ids of the examples number 0, ANCHOR_EVERY, 2 * ANCHOR_EVERY ..., previews included; empty for few examples.
    anchors: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.valid + self.invalid

    @property
    def preferences(self) -> int:
        """Valid train and eval examples with a rejected answer."""
        return sum(split.preferences for split in self.by_split.values())

    @property
    def character_count(self) -> int:
        """Of the valid train and eval examples, as is `size_bytes`."""
        return sum(group.characters for group in self._counted)

    @property
    def size_bytes(self) -> int:
        """Of their texts in UTF-8."""
        return sum(group.size_bytes for group in self._counted)

    @property
    def _counted(self) -> list[Group]:
        return [group for group in self.groups if group.is_valid and group.split != "preview"]

    @property
    def avg_token_count(self) -> int:
        tokens = sum(split.tokens for split in self.by_split.values())
        return round(tokens / self.valid) if self.valid else 0

    def count(self, **wanted: object) -> int:
        """How many examples, previews included, have all these values; None stands for any value."""
        return sum(
            group.count
            for group in self.groups
            if all(value is None or getattr(group, name) == value for name, value in wanted.items())
        )


def start_of(found: DatasetStats, offset: int) -> tuple[int, int]:
    """The id at which to begin, and how many examples to pass over from there, to come to the offset in all of them."""
    nearest = min(offset // ANCHOR_EVERY, len(found.anchors) - 1)
    return (found.anchors[nearest], offset - nearest * ANCHOR_EVERY) if nearest > 0 else (0, offset)


async def of(session: AsyncSession, dataset: Dataset | None) -> DatasetStats:
    """Counts anew only when the examples have changed since the last time: a dataset of a million costs one row."""
    if dataset is None:
        return DatasetStats()
    # The row as it is now, not as the caller loaded it; and before the counting, so that a writer in between makes the
    # kept counts stale and never wrong.
    revision, kept_at, kept = (
        await session.execute(
            select(Dataset.revision, Dataset.stats_revision, Dataset.stats).where(Dataset.id == dataset.id)
        )
    ).one()
    if kept_at == revision and (found := _kept(kept)) is not None:
        return found
    rows = (await session.execute(_COUNT, {"dataset_id": dataset.id})).all()
    groups = [Group(*row[:5], *(int(value) for value in row[5:])) for row in rows]
    anchors: list[int] = []
    if sum(group.count for group in groups) > ANCHOR_EVERY:
        anchors = list((await session.scalars(_ANCHORS, {"dataset_id": dataset.id})).all())
    stored = orjson.dumps({"groups": [astuple(group) for group in groups], "anchors": anchors}).decode()
    await session.execute(_KEEP, {"dataset_id": dataset.id, "seen": revision, "stats": stored})
    return _stats(groups, anchors)


async def of_many(session: AsyncSession, datasets: Sequence[Dataset]) -> dict[int, DatasetStats]:
    """By dataset id; one SELECT for all that have not changed since they were last counted."""
    columns = (Dataset.id, Dataset.revision, Dataset.stats_revision, Dataset.stats)
    rows = await session.execute(select(*columns).where(is_one_of(Dataset.id, [dataset.id for dataset in datasets])))
    kept = {row.id: _kept(row.stats) for row in rows if row.stats_revision == row.revision}
    return {dataset.id: kept.get(dataset.id) or await of(session, dataset) for dataset in datasets}


def summary(found: DatasetStats) -> dict[str, Any]:
    """What a finished generation job shows."""
    return {
        "total_generated": found.total,
        "valid": found.valid,
        "invalid": found.invalid,
        "train": found.by_split["train"].count,
        "eval": found.by_split["eval"].count,
    }


def _kept(stored: dict[str, Any] | None) -> DatasetStats | None:
    """None for counts of a time when fewer things were counted."""
    if stored is None or any(len(values) != len(fields(Group)) for values in stored["groups"]):
        return None
    return _stats([Group(*values) for values in stored["groups"]], stored["anchors"])


def _stats(groups: Sequence[Group], anchors: Sequence[int]) -> DatasetStats:
    found = DatasetStats(groups=list(groups), anchors=list(anchors))
    for group in groups:
        if group.split == "preview":
            found.preview += group.count
        elif group.is_valid:
            found.by_split.setdefault(group.split, SplitStats()).add(group)
            found.valid += group.count
        else:
            found.invalid += group.count
            reason = group.invalid_reason or "invalid"
            found.validation_errors[reason] = found.validation_errors.get(reason, 0) + group.count
    return found
