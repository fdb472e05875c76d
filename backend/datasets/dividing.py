"""Divides a dataset into training and evaluation set: by sections, again and again until nothing leaks between them."""

import asyncio
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import func, select

from backend.contents.models import Chunk
from backend.datasets import leakage, service
from backend.datasets.keeping import question_of
from backend.datasets.leakage import Leakage
from backend.datasets.models import Example
from backend.datasets.near_duplicates import normalised
from backend.datasets.preparing import Work
from backend.datasets.splitting import HeadingPath, held_out, path_of, sections_of
from backend.jobs.running import JobRun
from backend.kit.db import is_one_of

# How often other sections are held out instead of those that leak.
_MOST_TRIES = 4
_ROWS_AT_ONCE = 2000
_TEXTS_AT_ONCE = 500
_SHOWN_PAIRS = 5


@dataclass(frozen=True, slots=True)
class Division:
    """Which examples change their side (by id), and what the evaluation set has in common with the training set."""

    to_eval: list[int]
    to_train: list[int]
    leakage: dict[str, Any]


@dataclass(slots=True)
class _Rows:
    """All valid examples of a dataset, some forty bytes each. `pinned`: their split is not ours to choose."""

    ids: "array[int]" = field(default_factory=lambda: array("q"))
    chunks: "array[int]" = field(default_factory=lambda: array("q"))
    quotes: "array[int]" = field(default_factory=lambda: array("q"))
    paths: list[HeadingPath] = field(default_factory=list)
    is_eval: bytearray = field(default_factory=bytearray)
    pinned: bytearray = field(default_factory=bytearray)
    brought: bytearray = field(default_factory=bytearray)


async def divide(work: Work) -> Division:
    """Chooses sections to hold out until no held-out example gives itself away in training, or the least of all tries.

    Imported and hand-written examples stay where they are, and so does what was there before a run over the changed
    chunks only.
    """
    rows = await _rows(work)
    share = service.split_share(work.project)
    order = _reading_order(work, rows)
    sections = dict(zip(order, sections_of([rows.paths[at] for at in order], share), strict=True))
    never: set[HeadingPath] = set()
    best: tuple[int, bytearray, Leakage, int] | None = None
    for _ in range(_MOST_TRIES):
        out = _sides(rows, order, share, never)
        repeated = _repeated_quotes(rows, out)
        found = await _measure(work.run, rows, out)
        leaked = repeated | {pair[0] for pair in found.pairs}
        if best is None or (len(leaked), -sum(out)) < (best[0], -sum(best[1])):
            best = len(leaked), out, found, len(repeated)
        bad = {sections[at] for at in order if out[at] and rows.ids[at] in leaked}
        if not bad or bad <= never:
            break
        never |= bad
    assert best is not None
    _, out, found, _ = best
    if moved := _take_back(rows, out, found):
        found = await _measure(work.run, rows, out)
    return Division(
        to_eval=[rows.ids[at] for at in range(len(rows.ids)) if out[at] and not rows.is_eval[at]],
        to_train=[rows.ids[at] for at in range(len(rows.ids)) if rows.is_eval[at] and not out[at]],
        leakage=_report(rows, out, found, moved),
    )


def _reading_order(work: Work, rows: _Rows) -> list[int]:
    """The places of what a model wrote, as it stands in the documents."""
    position = {chunk_id: place for place, chunk_id in enumerate(work.whole.ids)}
    own = [at for at in range(len(rows.ids)) if not rows.brought[at]]
    order = sorted(own, key=lambda at: (position.get(rows.chunks[at], len(position)), rows.ids[at]))
    if _is_one_chunk(rows, order):
        # The second questions about its sentences come last: they belong to the first ones.
        first = {rows.quotes[at]: place for place, at in reversed(list(enumerate(order)))}
        order.sort(key=lambda at: first[rows.quotes[at]])
    return order


def _is_one_chunk(rows: _Rows, order: Sequence[int]) -> bool:
    return bool(order) and all(rows.chunks[at] == rows.chunks[order[0]] for at in order)


def _sides(rows: _Rows, order: Sequence[int], share: float, never: set[HeadingPath]) -> bytearray:
    """For each row: 1 when it is held out."""
    out = bytearray(rows.is_eval)
    # A single chunk must be divided: then at least no quote is.
    units = rows.quotes if _is_one_chunk(rows, order) else rows.chunks
    chosen = held_out(
        [rows.paths[at] for at in order],
        share,
        chunks=[units[at] for at in order],
        pinned=[bool(rows.is_eval[at]) if rows.pinned[at] else None for at in order] if any(rows.pinned) else None,
        never=never,
    )
    for at, is_out in zip(order, chosen, strict=True):
        out[at] = is_out
    return out


def _repeated_quotes(rows: _Rows, out: bytearray) -> set[int]:
    """The ids of held-out examples that rest on a quote that a training example rests on too."""
    trained = {rows.quotes[at] for at in range(len(rows.ids)) if not out[at] and rows.quotes[at]}
    return {rows.ids[at] for at in range(len(rows.ids)) if out[at] and rows.quotes[at] in trained}


def _take_back(rows: _Rows, out: bytearray, found: Leakage) -> int:
    """Moves held-out examples into training whose very quote is there; returns how many.

    Those that only resemble a training example stay: in a document that says everything in the same words there would
    be none left. The figure says how many they are.
    """
    repeated = _repeated_quotes(rows, out)
    movable = [
        at for at in range(len(rows.ids)) if rows.ids[at] in repeated and not rows.pinned[at] and not rows.brought[at]
    ]
    if len(movable) >= sum(out):
        return 0
    for at in movable:
        out[at] = 0
    return len(movable)


async def _measure(run: JobRun, rows: _Rows, out: bytearray) -> Leakage:
    """All pairs, most alike first."""
    held = array("q", (rows.ids[at] for at in range(len(rows.ids)) if out[at]))
    trained = array("q", (rows.ids[at] for at in range(len(rows.ids)) if not out[at]))
    loop = asyncio.get_running_loop()

    def texts(ids: "array[int]") -> Iterator[tuple[int, str]]:
        for start in range(0, len(ids), _TEXTS_AT_ONCE):
            window = _texts(run, ids[start : start + _TEXTS_AT_ONCE].tolist())
            yield from asyncio.run_coroutine_threadsafe(window, loop).result()

    return await asyncio.to_thread(lambda: leakage.measure(texts(trained), texts(held), most_pairs=len(held)))


async def _texts(run: JobRun, ids: list[int]) -> list[tuple[int, str]]:
    async with run.reading() as session:
        found = await session.execute(
            select(Example.id, Example.instruction, Example.input, Example.output, Example.history).where(
                is_one_of(Example.id, ids)
            )
        )
        return [(row.id, normalised(question_of(row.instruction, row.input, row.history), row.output)) for row in found]


def _report(rows: _Rows, out: bytearray, found: Leakage, moved: int) -> dict[str, Any]:
    """The figure with its most alike pairs, and a sentence that explains what is left of it."""
    report = replace(found, pairs=found.pairs[:_SHOWN_PAIRS]).as_json()
    same_quote = len(_repeated_quotes(rows, out))
    report |= {"same_quote": same_quote, "moved_to_train": moved, "explanation": None}
    if found.leaked or same_quote:
        report["explanation"] = (
            f"{found.leaked} of {found.held_out} held-out examples are worded much like a training example, and "
            f"{same_quote} rest on the same quote. Every choice of sections that was tried leaves at least as many: "
            "the documents repeat their wording. Read the evaluation loss as too good by that share."
        )
    return report


async def _rows(work: Work) -> _Rows:
    found = _Rows()
    known: dict[HeadingPath, HeadingPath] = {}
    new = set(work.chunks.ids) if work.only_changed else set()
    last = 0
    while True:
        async with work.run.reading() as session:
            window = (
                await session.execute(
                    select(
                        Example.id,
                        Example.chunk_id,
                        Example.source,
                        Example.split,
                        func.coalesce(Chunk.content_id, Example.content_id).label("content_id"),
                        Chunk.meta["headings"].label("headings"),
                        func.hashtextextended(func.lower(Example.meta["quote"].astext), 0).label("quote"),
                    )
                    .outerjoin(Chunk, Chunk.id == Example.chunk_id)
                    .where(Example.dataset_id == work.dataset.id, Example.is_valid, Example.split != "preview")
                    .where(Example.id > last)
                    .order_by(Example.id)
                    .limit(_ROWS_AT_ONCE)
                )
            ).all()
        for row in window:
            path = path_of(row.content_id, {"headings": row.headings})
            found.ids.append(row.id)
            found.chunks.append(row.chunk_id or 0)
            found.quotes.append(row.quote or 0)
            found.paths.append(known.setdefault(path, path))
            found.is_eval.append(row.split == "eval")
            found.brought.append(row.source != "generated")
            found.pinned.append(work.only_changed and row.chunk_id not in new)
        if len(window) < _ROWS_AT_ONCE:
            return found
        last = window[-1].id
