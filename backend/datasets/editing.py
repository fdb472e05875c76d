"""What people do with single examples: correct them, mark them valid or not, move them, restore or delete them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents.token_counting import ApproximateTokenCounter
from backend.datasets import queries
from backend.datasets.errors import ExampleNotFound, PreviewHasNoSplit, SameAnswers
from backend.datasets.fingerprints import fingerprint
from backend.datasets.models import Dataset, Example
from backend.kit.text import storable
from backend.projects.models import Project

# Why an example is invalid when a person said so. What the checks said of a text ends with the text; this does not.
MARKED = "marked_invalid"
DUPLICATE = "duplicate"
_TEXTS = ("instruction", "input", "output")
_WRITTEN = (*_TEXTS, "rejected")
_ESTIMATE = ApproximateTokenCounter()

_KEEP_ORIGINAL = """
  original = coalesce(original, jsonb_build_object(
    'instruction', instruction, 'input', input, 'output', output, 'rejected', rejected,
    'is_valid', is_valid, 'invalid_reason', invalid_reason, 'token_count', token_count)),
  edited_at = clock_timestamp(), updated_at = clock_timestamp()
"""
_MARK = text(f"""
UPDATE examples SET is_valid = CAST(:is_valid AS boolean), invalid_reason = CAST(:reason AS text), {_KEEP_ORIGINAL}
WHERE id = ANY(CAST(:ids AS bigint[]))
""")  # noqa: S608  (constants of this file)


@dataclass(frozen=True, slots=True)
class Marked:
    """How many examples changed, and which stay invalid because a valid one of the dataset says the same."""

    updated: int
    duplicates: list[UUID]


async def change(
    session: AsyncSession,
    example: Example,
    *,
    texts: Mapping[str, str | None],
    is_valid: bool | None = None,
    split: Literal["train", "eval"] | None = None,
) -> Example:
    """Sets the given texts (instruction, input, output), validity and split; `original` keeps what it was at first.

    `rejected`, an answer that is worse than the output, is a text too; None takes it away.

    A corrected text is taken to be valid unless a person marked it invalid, and never when another valid example of
    the dataset says the same: then its `invalid_reason` is `duplicate`. Its tokens are estimated from those of the
    original. What changes nothing writes nothing. Raises ExampleNotFound, PreviewHasNoSplit, SameAnswers.
    """
    row = await _locked(session, example)
    if split is not None and row.split == "preview":
        raise PreviewHasNoSplit()
    before = _content(row)
    wanted = {**before, **storable(dict(texts))}
    if wanted["rejected"] is not None and wanted["rejected"].strip() == wanted["output"].strip():
        raise SameAnswers()
    if any(wanted[name] != before[name] for name in _TEXTS) and row.invalid_reason != MARKED:
        wanted |= {"is_valid": True, "invalid_reason": None}
    if is_valid is True:
        wanted |= {"is_valid": True, "invalid_reason": None}
    elif is_valid is False and wanted["is_valid"]:
        wanted |= {"is_valid": False, "invalid_reason": MARKED}
    if wanted != before:
        await _apply(session, row, wanted)
        if _content(row) != before:  # else it is still a duplicate
            row.original = row.original or before
            row.edited_at = datetime.now(UTC)
    if split is not None and split != row.split:
        row.split = split
    return await _written(session, row)


async def restore(session: AsyncSession, example: Example) -> Example:
    """Gives texts and validity back as they were generated or imported; the split stays. Raises ExampleNotFound."""
    row = await _locked(session, example)
    if row.original is None:
        return row
    await _apply(session, row, row.original)
    row.original, row.edited_at = None, None
    return await _written(session, row)


async def delete(session: AsyncSession, example: Example) -> None:
    """Deletes an example; the frozen versions that hold it keep it. Raises ExampleNotFound."""
    await session.delete(await _locked(session, example))
    await session.flush()


async def mark(session: AsyncSession, project: Project, public_ids: Collection[UUID], *, is_valid: bool) -> Marked:
    """Marks many examples of a project at once, all or none. Raises ExampleNotFound when one is not the project's."""
    wanted = set(public_ids)
    for dataset_id in await _datasets_of(session, project, wanted):
        await queries.lock(session, dataset_id)
    found = (
        await session.execute(
            select(
                Example.id,
                Example.public_id,
                Example.dataset_id,
                Example.split,
                Example.is_valid,
                Example.invalid_reason,
                Example.fingerprint,
            )
            .join(Dataset, Dataset.id == Example.dataset_id)
            .where(Dataset.project_id == project.id, Example.public_id.in_(wanted))
            .order_by(Example.id)
        )
    ).all()
    if len(found) < len(wanted):
        raise ExampleNotFound()
    if not is_valid:
        changing = [row.id for row in found if row.is_valid]
        return Marked(await _mark(session, changing, is_valid=False, reason=MARKED), [])
    candidates = [row for row in found if not row.is_valid]
    taken = {
        (dataset_id, known)
        for dataset_id in {row.dataset_id for row in candidates}
        for known in await _valid_fingerprints(
            session, dataset_id, [row.fingerprint for row in candidates if row.dataset_id == dataset_id]
        )
    }
    valid, twins = [], []
    for row in candidates:
        said = (row.dataset_id, row.fingerprint)
        if row.split != "preview" and said in taken:
            twins.append(row)
        else:
            valid.append(row.id)
            if row.split != "preview":
                taken.add(said)
    updated = await _mark(session, valid, is_valid=True, reason=None)
    renamed = [row.id for row in twins if row.invalid_reason != DUPLICATE]
    updated += await _mark(session, renamed, is_valid=False, reason=DUPLICATE)
    return Marked(updated, [row.public_id for row in twins])


def has_other_text(example: Example) -> bool:
    """Whether a person wrote or changed its words, so that its tokens are an estimate."""
    original = example.original
    return (
        example.source == "manual"
        or original is not None
        and any(original[name] != getattr(example, name) for name in _TEXTS)
    )


async def _locked(session: AsyncSession, example: Example) -> Example:
    """The example as it is now, its dataset locked. Raises ExampleNotFound when it went meanwhile."""
    await queries.lock(session, example.dataset_id)
    row = await session.get(Example, example.id, populate_existing=True)
    if row is None:
        raise ExampleNotFound()
    return row


async def _apply(session: AsyncSession, row: Example, wanted: dict[str, Any]) -> None:
    """Writes texts and validity into the row, and what follows from them."""
    original = row.original or _content(row)
    for name in _WRITTEN:
        # One that was edited before there were rejected answers had none.
        setattr(row, name, wanted.get(name))
    row.fingerprint = fingerprint(row.instruction, row.input, row.output, row.history, row.rejected)
    row.token_count = _estimate(original, wanted)
    row.is_valid, row.invalid_reason = wanted["is_valid"], wanted["invalid_reason"]
    if row.is_valid and row.split != "preview":
        with session.no_autoflush:
            twins = await _valid_fingerprints(session, row.dataset_id, [row.fingerprint], but=row.id)
        if twins:
            row.is_valid, row.invalid_reason = False, DUPLICATE


async def _written(session: AsyncSession, row: Example) -> Example:
    if row in session.dirty:
        await session.flush()
        # Another text of as many tokens changes what the statistics count, too.
        await session.execute(
            update(Dataset).where(Dataset.id == row.dataset_id).values(revision=Dataset.revision + 1),
            execution_options={"synchronize_session": False},
        )
        await session.refresh(row)
    return row


def _content(row: Example) -> dict[str, Any]:
    return {
        **{name: getattr(row, name) for name in _WRITTEN},
        "is_valid": row.is_valid,
        "invalid_reason": row.invalid_reason,
        "token_count": row.token_count,
    }


def _estimate(original: dict[str, Any], wanted: dict[str, Any]) -> int:
    """Tokens of a changed text, in the measure of the original: an estimate of both is scaled to what was counted.

    The base model's tokenizer may have to come from the network and takes seconds to load: too much for a request.
    """
    before, after = _ESTIMATE.count_many(
        ["\n".join(part for part in (texts[name] for name in _TEXTS) if part) for texts in (original, wanted)]
    )
    counted = original.get("token_count")
    return round(counted * after / before) if before and counted else after


async def _datasets_of(session: AsyncSession, project: Project, public_ids: Collection[UUID]) -> Sequence[int]:
    found = await session.scalars(
        select(Example.dataset_id)
        .join(Dataset, Dataset.id == Example.dataset_id)
        .where(Dataset.project_id == project.id, Example.public_id.in_(public_ids))
        .distinct()
        .order_by(Example.dataset_id)
    )
    return found.all()


async def _valid_fingerprints(
    session: AsyncSession, dataset_id: int, fingerprints: Collection[str], *, but: int | None = None
) -> set[str]:
    """Those of the fingerprints that a valid train or eval example has already."""
    statement = select(Example.fingerprint).where(
        Example.dataset_id == dataset_id,
        Example.split != "preview",
        Example.is_valid,
        Example.fingerprint.in_(fingerprints),
    )
    if but is not None:
        statement = statement.where(Example.id != but)
    return set((await session.scalars(statement)).all())


async def _mark(session: AsyncSession, ids: Sequence[int], *, is_valid: bool, reason: str | None) -> int:
    if ids:
        await session.execute(_MARK, {"ids": list(ids), "is_valid": is_valid, "reason": reason})
    return len(ids)
