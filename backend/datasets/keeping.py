"""What happens to an answered chunk: its examples are screened against all that the dataset holds, and committed."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from backend.contents.models import Chunk
from backend.datasets import queries
from backend.datasets.asking import Answer, Writer
from backend.datasets.fingerprints import fingerprint
from backend.datasets.models import ChunkMark, Dataset, Example
from backend.datasets.strategies.base import ExampleDraft
from backend.datasets.strategies.judge import Score
from backend.jobs.running import JobRun
from backend.kit.db import is_one_of
from backend.kit.text import storable

# Why an example is not valid that was good by itself.
DUPLICATE, NEAR_DUPLICATE, CONTAMINATED = "duplicate", "near_duplicate", "contaminated"
JUDGED_LOW = "judged_low"
_RESTORED_AT_ONCE = 1000


class Screen(Protocol):
    """Looks at texts against all those that it has let pass before."""

    def refuse(self, rows: Sequence[tuple[UUID, str, str]]) -> list[dict[str, Any] | None]:
        """For each (public id, question, answer): None, and it is kept; or {"reason": ..., and what says why}."""
        ...


@dataclass(slots=True)
class Round:
    """What one round has brought so far. `barren` holds the chunks that gave nothing valid: not to be asked again."""

    number: int
    planned: int = 0
    finished: int = 0
    added: int = 0
    barren: set[int] = field(default_factory=set)


class Keeper:
    """The only writer of a generation's examples. `valid` counts the generated ones of the dataset that count."""

    def __init__(self, run: JobRun, writer: Writer, dataset: Dataset, screen: Screen, target: int | None) -> None:
        self._run = run
        self._writer = writer
        self._dataset = dataset
        self._screen = screen
        self.target = target
        self.valid = 0
        self.asked = 0

    @property
    def is_full(self) -> bool:
        return self.target is not None and self.valid >= self.target

    async def restore(self) -> None:
        """Shows the screen what the dataset holds already: what people brought or edited first, so that it wins."""
        for own in (True, False):
            last = 0
            while rows := await self._held(last, by_people=own):
                last = rows[-1].id
                refused = await asyncio.to_thread(
                    self._screen.refuse,
                    [(row.public_id, question_of(row.instruction, row.input, row.history), row.output) for row in rows],
                )
                # What somebody edited stays as it is: that was their decision.
                stale = {
                    row.id: why
                    for row, why in zip(rows, refused, strict=True)
                    if why is not None and row.edited_at is None and not _is_rated_twin(row, why)
                }
                if stale:
                    async with self._run.writing() as session:
                        await queries.lock(session, self._dataset.id)
                        await _refuse(session, stale)
                self.valid += sum(row.source == "generated" and row.id not in stale for row in rows)
        async with self._run.reading() as session:
            generated = select(func.count()).where(
                Example.dataset_id == self._dataset.id, Example.source == "generated", Example.split != "preview"
            )
            self.asked = int(await session.scalar(generated) or 0)

    async def keep(self, batch: Sequence[Answer], current: Round) -> None:
        """Commits the examples of answered chunks, each with the mark that it was asked in this round."""
        counted = [await count_tokens(self._writer, answer.outcome.drafts) for answer in batch]
        async with self._run.writing() as session:
            if await queries.lock(session, self._dataset.id) is None:
                return
            asked = [answer.source.id for answer in batch]
            alive = set(
                await session.scalars(
                    select(Chunk.id).where(is_one_of(Chunk.id, asked)).with_for_update(read=True, key_share=True)
                )
            )
            # Of the others the file was deleted meanwhile: nobody wants their examples any more.
            kept = [
                (answer, counts) for answer, counts in zip(batch, counted, strict=True) if answer.source.id in alive
            ]
            rows = [rows_of(self._dataset.id, answer, counts, self._threshold) for answer, counts in kept]
            await self._screen_rows(session, [row for found in rows for row in found])
            valid = self.valid
            for (answer, _), found in zip(kept, rows, strict=True):
                chosen, valid = self._within_target(found, valid)
                session.add_all(chosen)
                session.add(_mark(self._run, self._dataset, answer, current.number))
                if not any(row.is_valid for row in found):
                    current.barren.add(answer.source.id)
            await session.flush()
        current.added += valid - self.valid
        self.valid = valid
        self.asked += sum(answer.asked for answer in batch)
        current.finished += len(batch)

    @property
    def _threshold(self) -> float | None:
        return self._writer.judge_threshold if self._writer.judge is not None else None

    async def _screen_rows(self, session: AsyncSession, rows: Sequence[Example]) -> None:
        fit = [row for row in rows if row.is_valid]
        known = await queries.known_fingerprints(session, self._dataset.id, [row.fingerprint for row in fit])
        new = []
        for row in fit:
            if row.fingerprint in known:
                row.is_valid, row.invalid_reason = False, DUPLICATE
            else:
                new.append(row)
            known.add(row.fingerprint)
        asked = [(row.public_id, question_of(row.instruction, row.input), row.output) for row in new]
        # In a thread: it is pure CPU, and the loop must stay free for the answers that come in.
        for row, why in zip(new, await asyncio.to_thread(self._screen.refuse, asked), strict=True):
            if why is not None:
                row.is_valid, row.invalid_reason = False, why["reason"]
                row.meta = {**row.meta, **{key: value for key, value in why.items() if key != "reason"}}

    def _within_target(self, rows: Sequence[Example], valid: int) -> tuple[list[Example], int]:
        """The rows without the valid ones that are too many; the best of a chunk come first. And the new count."""
        chosen = []
        for row in rows:
            if row.is_valid and self.target is not None and valid >= self.target:
                continue
            valid += row.is_valid
            chosen.append(row)
        return chosen, valid

    async def _held(self, after: int, *, by_people: bool) -> Sequence[Any]:
        people = (Example.source != "generated") | Example.edited_at.is_not(None)
        async with self._run.reading() as session:
            rows = await session.execute(
                select(
                    Example.id,
                    Example.public_id,
                    Example.instruction,
                    Example.input,
                    Example.output,
                    Example.history,
                    Example.rejected,
                    Example.source,
                    Example.edited_at,
                )
                .where(Example.dataset_id == self._dataset.id, Example.split != "preview", Example.is_valid)
                .where(people if by_people else ~people, Example.id > after)
                .order_by(Example.id)
                .limit(_RESTORED_AT_ONCE)
            )
            return rows.all()


async def count_tokens(writer: Writer, drafts: Iterable[ExampleDraft]) -> list[int]:
    """Tokens of each draft's question, input and answer by the base model's tokenizer."""
    texts = [
        storable("\n".join(part for part in (draft.instruction, draft.input, draft.output) if part)) for draft in drafts
    ]
    return await asyncio.to_thread(writer.counter.count_many, texts)


def rows_of(
    dataset_id: int, answer: Answer, counts: Sequence[int], threshold: float | None, split: str = "train"
) -> list[Example]:
    """The examples of a chunk as rows; what the judge scored below the threshold is not valid."""
    scores = iter(answer.judgement.scores if answer.judgement is not None else ())
    rows = []
    for draft, count in zip(answer.outcome.drafts, counts, strict=True):
        row = _row(dataset_id, answer, draft, count, split)
        if threshold is not None and draft.is_valid:
            _apply(row, next(scores, None), threshold)
        rows.append(row)
    return rows


def _apply(row: Example, score: Score | None, threshold: float) -> None:
    row.meta = {**row.meta, "judge": None if score is None else storable(score.as_json())}
    if score is not None and score.lower < threshold:
        row.is_valid, row.invalid_reason = False, JUDGED_LOW


def _row(dataset_id: int, answer: Answer, draft: ExampleDraft, token_count: int, split: str) -> Example:
    meta: dict[str, Any] = storable({**draft.meta})
    if draft.quote:
        meta["quote"] = storable(draft.quote)
    if draft.page is not None:
        meta["page"] = draft.page
    instruction, given, output = (storable(part) for part in (draft.instruction, draft.input, draft.output))
    return Example(
        public_id=uuid7(),
        dataset_id=dataset_id,
        chunk_id=answer.source.id,
        content_id=answer.source.content_id,
        source="generated",
        split=split,
        instruction=instruction,
        input=given,
        output=output,
        is_valid=draft.is_valid,
        invalid_reason=draft.invalid_reason,
        token_count=token_count,
        fingerprint=fingerprint(instruction, given, output),
        meta=meta,
    )


def _mark(run: JobRun, dataset: Dataset, answer: Answer, number: int) -> ChunkMark:
    return ChunkMark(
        job_id=run.claim.id,
        dataset_id=dataset.id,
        chunk_id=answer.source.id,
        round=number,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
    )


def question_of(instruction: str, given: str, history: Sequence[dict[str, str]] | None = None) -> str:
    """All that is asked: the same last turn after another conversation is another question."""
    return "\n".join([*(turn["content"] for turn in history or ()), instruction, *([given] if given else [])])


def _is_rated_twin(row: Any, why: dict[str, Any]) -> bool:
    """One answer may be preferred to several others: those are not compared, and each is worth its place."""
    return row.rejected is not None and why["reason"] == NEAR_DUPLICATE


async def _refuse(session: AsyncSession, stale: dict[int, dict[str, Any]]) -> None:
    for example_id, why in stale.items():
        extra = {key: value for key, value in why.items() if key != "reason"}
        await session.execute(
            update(Example)
            .where(Example.id == example_id, Example.edited_at.is_(None))
            .values(is_valid=False, invalid_reason=why["reason"], meta=Example.meta.op("||")(literal(extra, JSONB)))
        )
