"""Examples as pairs of question and answer: read, written by hand one by one or by the thousand, changed, deleted."""

import asyncio
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import case, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from backend.contents.chunking import ApproximateTokenCounter
from backend.datasets import editing, queries
from backend.datasets.errors import DatasetFailed, DuplicatePair, PairNotFound, PairRefused, UnknownDataset
from backend.datasets.fingerprints import fingerprint, normalised
from backend.datasets.models import Dataset, Example
from backend.datasets.service import split_share
from backend.kit.db import fetch
from backend.kit.pagination import Window
from backend.kit.text import storable
from backend.projects import queries as project_queries
from backend.projects import service as projects

LONGEST_TEXT = 100_000
MAX_METADATA_BYTES = 8 * 1024
# While a dataset has fewer valid examples, what is written by hand is all trained on.
FEWEST_TO_HOLD_OUT = 10
# Where in an example's `meta` a person's own metadata lies: what the checks say of it has other names.
OWN_METADATA = "pair"
# Of a question with more paragraphs, fewer ways are tried to tell an instruction from its input.
_MOST_BREAKS = 8
_BREAK = "\n\n"
_ESTIMATE = ApproximateTokenCounter()

# As `question_of` has it.
QUESTION = case((Example.input == "", Example.instruction), else_=Example.instruction + _BREAK + Example.input)
_KNOWN = """
SELECT id, fingerprint FROM examples
WHERE dataset_id = $1 AND fingerprint = ANY($2::text[]) AND is_valid AND split <> 'preview' AND history IS NULL
"""
_COUNT = (
    "SELECT count(*) FROM (SELECT FROM examples WHERE dataset_id = $1 AND is_valid AND split <> 'preview' LIMIT $2) n"
)
# Of a question that is on both sides, no evaluation tells anything: its next answer is trained on.
_SIDES = """
SELECT question, bool_or(split = 'train') FROM (
  SELECT split, CASE WHEN input = '' THEN instruction ELSE instruction || $3 || input END AS question FROM examples
  WHERE dataset_id = $1 AND is_valid AND split <> 'preview'
) held
WHERE lower(question) IN (SELECT lower(asked) FROM unnest($2::text[]) asked)
GROUP BY question
"""
# One statement for all: the triggers that count revisions run once for each.
_INSERT = text("""
INSERT INTO examples
  (public_id, dataset_id, source, split, instruction, input, output, rejected, is_valid, token_count, fingerprint, meta)
SELECT public_id, :dataset_id, 'manual', split, question, '', answer, rejected, true, tokens, fingerprint, meta::jsonb
FROM unnest(CAST(:public_ids AS uuid[]), CAST(:sides AS text[]), CAST(:question AS text[]), CAST(:answer AS text[]),
            CAST(:rejected AS text[]), CAST(:tokens AS int[]), CAST(:fingerprint AS text[]), CAST(:meta AS text[]))
  AS given (public_id, split, question, answer, rejected, tokens, fingerprint, meta)
RETURNING fingerprint, id
""")
_COLUMNS = ("question", "answer", "rejected", "tokens", "fingerprint", "meta")


@dataclass(frozen=True, slots=True)
class NewPair:
    """`rejected` is an answer that is worse than `answer`."""

    question: str
    answer: str
    metadata: Mapping[str, Any] | None = None
    rejected: str | None = None


@dataclass(slots=True)
class Added:
    """What became of pairs, by their index: `ids` of those that were added, in order; ids of what others repeat."""

    ids: list[int] = field(default_factory=list)
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A pair that is fit to be written; `alike` are the fingerprints of examples that would read the same."""

    index: int
    question: str
    answer: str
    rejected: str | None
    meta: str
    tokens: int
    fingerprint: str
    alike: tuple[str, ...]


async def page(session: AsyncSession, dataset: Dataset, window: Window) -> Sequence[Example]:
    """The valid train and eval examples in the order in which they were made."""
    ids = (
        select(Example.id)
        .where(Example.dataset_id == dataset.id, Example.is_valid, Example.split != "preview")
        .order_by(Example.id)
        .limit(window.limit)
        .offset(window.offset)
    )
    return (await session.scalars(select(Example).where(Example.id.in_(ids)).order_by(Example.id))).all()


async def get(session: AsyncSession, dataset: Dataset, number: int) -> Example:
    """Raises PairNotFound."""
    example = await session.scalar(
        select(Example).where(
            Example.id == number, Example.dataset_id == dataset.id, Example.is_valid, Example.split != "preview"
        )
    )
    if example is None:
        raise PairNotFound()
    return example


async def add(session: AsyncSession, dataset: Dataset, pair: NewPair) -> Example:
    """Raises PairRefused, DuplicatePair, DatasetFailed, UnknownDataset."""
    added = await add_many(session, dataset, [pair])
    if added.rejected:
        raise PairRefused(reason=added.rejected[0][1])
    if added.duplicates:
        raise DuplicatePair(duplicate_of=added.duplicates[0][1])
    return await session.get_one(Example, added.ids[0])


async def add_many(session: AsyncSession, dataset: Dataset, pairs: Sequence[NewPair]) -> Added:
    """Writes all that are fit and new in one statement; those who write into one dataset take turns.

    A question goes to the side on which it is already, else where the digest of its words says: the held-out share
    of the project, none while the dataset is small. Raises DatasetFailed, UnknownDataset.
    """
    added = Added()
    # Digests and estimates of thousands of texts take a moment, in which nothing is locked.
    ready = await asyncio.to_thread(_prepare, pairs, added.rejected)
    locked = await queries.lock(session, dataset.id)
    if locked is None:
        raise UnknownDataset()
    if locked.status == "error":
        raise DatasetFailed()
    known = await _known(session, locked.id, ready)
    fresh, repeated = _tell_apart(ready, known)
    if fresh:
        sides = await _sides(session, locked, fresh)
        columns = {name: [getattr(pair, name) for pair in fresh] for name in _COLUMNS}
        rows = await session.execute(
            _INSERT, {"dataset_id": locked.id, "public_ids": [uuid7() for _ in fresh], "sides": sides, **columns}
        )
        numbers = {row.fingerprint: row.id for row in rows}
        added.ids = [numbers[pair.fingerprint] for pair in fresh]
        if locked.status == "processing" and await queries.find_making(session, locked) is None:
            locked.status = "ready"  # it held previews alone
        await _touch(session, locked)
        await projects.settle_stage(session, locked.project_id)
    own = {pair.index: number for pair, number in zip(fresh, added.ids, strict=True)}
    added.duplicates = [(index, own[first] if number is None else number) for index, number, first in repeated]
    await session.refresh(dataset)
    return added


async def change(
    session: AsyncSession,
    dataset: Dataset,
    number: int,
    *,
    question: str | None = None,
    answer: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    rejected: str | None = None,
    drops_rejected: bool = False,
) -> Example:
    """Sets what is given; another question takes the place of instruction and input. It is an edit like the studio's.

    `drops_rejected` takes the rejected answer away.
    Raises PairNotFound, PairRefused, SameAnswers, DuplicatePair, UnknownDataset.
    """
    locked = await queries.lock(session, dataset.id)
    if locked is None:
        raise UnknownDataset()
    example = await get(session, dataset, number)
    question = question_of(example) if question is None else storable(question).strip()
    answer = example.output if answer is None else storable(answer).strip()
    kept = None if drops_rejected else example.rejected
    rejected = kept if rejected is None else storable(rejected).strip()
    if reason := _fault(question, answer, metadata, rejected):
        raise PairRefused(reason=reason)
    texts: dict[str, str | None] = {"output": answer, "rejected": rejected}
    if question != question_of(example):
        texts |= {"instruction": question, "input": ""}
    if example.history is None:
        rows = await fetch(session, _KNOWN, dataset.id, list(alike(question, answer, rejected)))
        if twin := next((row[0] for row in rows if row[0] != example.id), None):
            raise DuplicatePair(duplicate_of=twin)
    await _touch(session, locked)
    if metadata is not None:
        example.meta = {**example.meta, OWN_METADATA: storable(dict(metadata))}
        await session.flush()
    return await editing.change(session, example, texts=texts)


async def delete(session: AsyncSession, dataset: Dataset, number: int) -> None:
    """Frozen versions that hold it keep it. Raises PairNotFound, UnknownDataset."""
    locked = await queries.lock(session, dataset.id)
    if locked is None:
        raise UnknownDataset()
    await _touch(session, locked)
    await editing.delete(session, await get(session, dataset, number))


def question_of(example: Example) -> str:
    """The instruction, with the input below it where there is one."""
    return f"{example.instruction}{_BREAK}{example.input}" if example.input else example.instruction


def metadata_of(example: Example) -> dict[str, Any]:
    """Where it came from, what the checks found, and above all that what a person wrote down about it."""
    found: dict[str, Any] = {"source": example.source}
    if example.content_id is not None:
        found["source"] = f"content_{example.content_id}"
    if example.chunk_id is not None:
        found["chunk_id"] = example.chunk_id
    checked = {name: value for name, value in example.meta.items() if name != OWN_METADATA}
    return {**checked, **found, **example.meta.get(OWN_METADATA, {})}


async def _touch(session: AsyncSession, dataset: Dataset) -> None:
    dataset.updated_at = func.clock_timestamp()
    await session.flush()


def _prepare(pairs: Sequence[NewPair], refused: list[tuple[int, str]]) -> list[_Ready]:
    fit = []
    for index, pair in enumerate(pairs):
        question, answer = storable(pair.question).strip(), storable(pair.answer).strip()
        worse = None if pair.rejected is None else storable(pair.rejected).strip()
        if reason := _fault(question, answer, pair.metadata, worse):
            refused.append((index, reason))
        else:
            fit.append((index, question, answer, worse, pair.metadata))
    tokens = _ESTIMATE.count_many([f"{question}\n{answer}" for _, question, answer, _, _ in fit])
    return [
        _Ready(
            index,
            question,
            answer,
            worse,
            json.dumps({OWN_METADATA: storable(dict(metadata))} if metadata else {}),
            count,
            (known := alike(question, answer, worse))[0],
            known,
        )
        for (index, question, answer, worse, metadata), count in zip(fit, tokens, strict=True)
    ]


def fault_of(name: str, content: str) -> str | None:
    """Why a text cannot be kept, as a sentence."""
    if not any(character.isalnum() for character in content):
        return f"The {name} has no letter and no digit. Write one."
    if len(content) > LONGEST_TEXT:
        return f"The {name} has more than {LONGEST_TEXT:,} characters. Shorten it."
    return None


def _fault(question: str, answer: str, metadata: Mapping[str, Any] | None, rejected: str | None) -> str | None:
    """Why the pair cannot be kept, as a sentence."""
    texts = {"question": question, "answer": answer}
    if rejected is not None:
        texts["rejected answer"] = rejected
    for name, content in texts.items():
        if reason := fault_of(name, content):
            return reason
    if answer == rejected:
        return "The rejected answer is the same as the answer. Change one of them, or leave the rejected one out."
    if metadata and len(json.dumps(metadata)) > MAX_METADATA_BYTES:
        return f"The metadata is larger than {MAX_METADATA_BYTES // 1024} KB. Keep what tells the pairs apart."
    return None


def alike(question: str, answer: str, rejected: str | None = None) -> tuple[str, ...]:
    """The pair's own fingerprint, then those of examples whose instruction and input read as this question does."""
    found = [fingerprint(question, "", answer, None, rejected)]
    at = question.find(_BREAK)
    while at != -1 and len(found) <= _MOST_BREAKS:
        found.append(fingerprint(question[:at], question[at + len(_BREAK) :], answer, None, rejected))
        at = question.find(_BREAK, at + len(_BREAK))
    return tuple(found)


async def _known(session: AsyncSession, dataset_id: int, ready: Iterable[_Ready]) -> dict[str, int]:
    """The ids of the dataset's own examples by those of the fingerprints that they have."""
    wanted = {known for pair in ready for known in pair.alike}
    rows = await fetch(session, _KNOWN, dataset_id, list(wanted)) if wanted else []
    return {row[1]: row[0] for row in rows}


def _tell_apart(
    ready: Sequence[_Ready], known: Mapping[str, int]
) -> tuple[list[_Ready], list[tuple[int, int | None, int]]]:
    """Those that are new; and (index, id that it repeats, else index of the one in the same request) of the others."""
    fresh: list[_Ready] = []
    first: dict[str, int] = {}
    repeated: list[tuple[int, int | None, int]] = []
    for pair in ready:
        number = next((known[name] for name in pair.alike if name in known), None)
        if number is not None or pair.fingerprint in first:
            repeated.append((pair.index, number, first.get(pair.fingerprint, -1)))
        else:
            first[pair.fingerprint] = pair.index
            fresh.append(pair)
    return fresh, repeated


async def _sides(session: AsyncSession, dataset: Dataset, fresh: Sequence[_Ready]) -> list[str]:
    """`train` or `eval` for each, the same for all with the same question."""
    project = await project_queries.get_by_id(session, dataset.project_id)
    held_out = 1 - split_share(project)
    decided = await sides_of(session, dataset.id, {pair.question for pair in fresh})
    count = int((await fetch(session, _COUNT, dataset.id, FEWEST_TO_HOLD_OUT))[0][0])
    sides = []
    for place, pair in enumerate(fresh, start=count):
        question = normalised(pair.question)
        if question not in decided:
            is_held_out = place >= FEWEST_TO_HOLD_OUT and _share(question) < held_out
            decided[question] = "eval" if is_held_out else "train"
        sides.append(decided[question])
    return sides


async def sides_of(session: AsyncSession, dataset_id: int, questions: Collection[str]) -> dict[str, str]:
    """`train` or `eval` of those that the dataset asks already, by the normalised question, however it is divided."""
    found: dict[str, str] = {}
    for question, is_trained_on in await fetch(session, _SIDES, dataset_id, list(questions), _BREAK):
        known = normalised(question)
        found[known] = "train" if is_trained_on or found.get(known) == "train" else "eval"
    return found


def _share(question: str) -> float:
    """A number from 0 to 1 that depends on the words alone."""
    return int.from_bytes(hashlib.blake2b(question.encode(), digest_size=7).digest(), "big") / 2**56
