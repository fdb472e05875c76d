"""The preview job: a few real examples in seconds, from chunks spread over the documents."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from itertools import islice
from typing import Any

from sqlalchemy import delete, select

from backend.contents.models import Chunk
from backend.datasets import planning, queries, sources
from backend.datasets.asking import Answer, Writer, ask
from backend.datasets.concluding import name_model
from backend.datasets.errors import NothingGenerated
from backend.datasets.fingerprints import fingerprint
from backend.datasets.keeping import count_tokens, rows_of
from backend.datasets.models import Example
from backend.datasets.preparing import Work, load
from backend.datasets.sources import Outline, Source
from backend.jobs.running import JobRun
from backend.kit.db import is_one_of

# Chunks that are asked for each wanted example before a preview makes do with what it has.
_MOST_CHUNKS_PER_EXAMPLE = 5


async def preview(run: JobRun, writer: Writer) -> dict[str, Any]:
    """Replaces the dataset's preview examples by new ones. Raises NothingGenerated when no chunk gave any.

    With fewer chunks than examples, the chunks give several each, by what they hold. Where that is too little, the
    result's `shortfall` says why.
    """
    work = await load(run, writer)
    count = int(run.params["target"])
    order = list(islice(spread_out(work.whole), count * _MOST_CHUNKS_PER_EXAMPLE))
    sample = _Sample(work, count)
    await sample.ask_for(_shares(work.whole, order, count))
    fruitful = {answer.source.id for answer in sample.answers}
    if missing := count - sample.size:
        # Some chunks gave nothing and there is no other: those that gave something are asked for more.
        again = [chunk_id for chunk_id in order if chunk_id in fruitful]
        await sample.ask_for(_shares(work.whole, again, missing), times=2)
    answers, asked = sample.answers, sample.asked
    if not answers:
        raise NothingGenerated(chunks=asked)
    counted = [await count_tokens(writer, answer.outcome.drafts) for answer in answers]
    async with run.writing() as session:
        await queries.lock(session, work.dataset.id)
        await session.execute(delete(Example).where(Example.dataset_id == work.dataset.id, Example.split == "preview"))
        chunk_ids = [answer.source.id for answer in answers]
        alive = set(
            await session.scalars(
                select(Chunk.id).where(is_one_of(Chunk.id, chunk_ids)).with_for_update(read=True, key_share=True)
            )
        )
        rows = [
            row
            for answer, counts in zip(answers, counted, strict=True)
            if answer.source.id in alive  # else its file was deleted meanwhile
            for row in rows_of(work.dataset.id, answer, counts, None, "preview")
        ]
        session.add_all(rows)
        await name_model(session, work.dataset, writer)
    shortfall = _shortfall(count, len(rows), asked)
    return {"total_generated": len(rows), "valid": len(rows), "chunks_asked": asked, "shortfall": shortfall}


def _shares(outline: Outline, order: list[int], count: int) -> dict[int, int]:
    """How many examples to ask of each chunk of `order`: one where there are enough chunks."""
    if len(order) >= count:
        return dict.fromkeys(order, 1)
    weights = dict(zip(outline.ids, outline.weights, strict=True))
    own = [weights[chunk_id] for chunk_id in order]
    shares = planning.spread(own, count, [planning.capacity(weight) for weight in own])
    return dict(zip(order, shares, strict=True))


def _shortfall(wanted: int, valid: int, asked: int) -> dict[str, Any] | None:
    if valid >= wanted:
        return None
    reason = (
        f"{asked} {'chunk' if asked == 1 else 'chunks'} gave {valid} of {wanted} examples. "
        "Add documents with more running text, ask for fewer examples, or use a stronger model."
    )
    return {"wanted": wanted, "valid": valid, "reason": reason}


def spread_out(outline: Outline) -> Iterator[int]:
    """All chunk ids, one of each document in turn, and of each document the middle of the widest gap first."""
    documents: dict[int, list[int]] = defaultdict(list)
    for chunk_id, content_id in zip(outline.ids, outline.content_ids, strict=True):
        documents[content_id].append(chunk_id)
    waiting = [iter(_by_halves(chunk_ids)) for chunk_ids in documents.values()]
    while waiting:
        still = []
        for chunk_ids in waiting:
            for chunk_id in islice(chunk_ids, 1):
                still.append(chunk_ids)
                yield chunk_id
        waiting = still


def _by_halves(items: list[int]) -> Iterator[int]:
    """The middle, then the middles of both halves, and so on, breadth first."""
    gaps = [(0, len(items))]
    while gaps:
        for start, end in gaps:
            if start < end:
                yield items[(start + end) // 2]
        gaps = [
            half
            for start, end in gaps
            if end - start > 1
            for half in ((start, (start + end) // 2), ((start + end) // 2 + 1, end))
        ]


class _Sample:
    """The preview as it grows: answers with their new valid examples alone, no two alike, `count` of them at most."""

    def __init__(self, work: Work, count: int) -> None:
        self._work = work
        self._count = count
        self._seen: set[str] = set()
        self.answers: list[Answer] = []
        # Chunks, each counted once.
        self.asked = 0

    @property
    def size(self) -> int:
        return len(self._seen)

    async def ask_for(self, shares: dict[int, int], *, times: int = 1) -> None:
        """Asks chunks (by id) for so many examples each, in their order, until there are enough.

        At once as many chunks are asked as should give what is missing; what they lack is asked of the next ones.
        """
        under_way: set[asyncio.Task[Answer]] = set()
        expected = 0
        async with aclosing(sources.texts(self._work.run, list(shares))) as items:
            try:
                while self.size < self._count:
                    while self.size + expected < self._count and (source := await anext(items, None)) is not None:
                        under_way.add(asyncio.create_task(self._ask(source, shares[source.id], times)))
                        expected += shares[source.id]
                        self.asked += times == 1
                    if not under_way:
                        break
                    done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    failed = [error for task in done if (error := task.exception()) is not None]
                    if failed:
                        raise failed[0]
                    for answer in (task.result() for task in done):
                        expected -= shares[answer.source.id]
                        self._take(answer)
                    await self._work.run.progress(95 * self.size / self._count, f"Example {self.size}/{self._count}")
            finally:
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)

    async def _ask(self, source: Source, share: int, times: int) -> Answer:
        own = (answer for answer in self.answers if answer.source.id == source.id)
        known = tuple(draft.instruction for answer in own for draft in answer.outcome.drafts)
        # A small model repeats what it was told to avoid: it is asked for as many more.
        wanted = share + len(known)
        return await ask(self._work.writer, self._work.project, replace(source, avoid=known), wanted, times=times)

    def _take(self, answer: Answer) -> None:
        drafts = []
        for draft in answer.outcome.drafts:
            key = fingerprint(draft.instruction, draft.input, draft.output)
            if draft.is_valid and key not in self._seen and self.size < self._count:
                self._seen.add(key)
                drafts.append(draft)
        if drafts:
            self.answers.append(replace(answer, outcome=replace(answer.outcome, drafts=tuple(drafts))))
