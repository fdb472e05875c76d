"""The generation job: rounds over the chunks until the target is met or they have no more to give."""

from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from sqlalchemy import func, select

from backend.datasets import planning, reading, sources
from backend.datasets.asking import Answer, Writer, ask
from backend.datasets.concluding import Outcome, conclude, nothing_changed
from backend.datasets.keeping import Keeper, Round
from backend.datasets.models import ChunkMark
from backend.datasets.pipeline import ask_and_keep
from backend.datasets.preparing import Work, load, prepare, room, valid_elsewhere
from backend.datasets.screening import Screening
from backend.datasets.sources import Source
from backend.jobs.running import JobRun
from backend.storage import Storage

# Shares of the progress bar: the first round, all rounds together; the rest is the conclusion.
_FIRST_ROUND, _ALL_ROUNDS = 80.0, 95.0


async def generate(run: JobRun, writer: Writer, storage: Storage) -> dict[str, Any]:
    """Fills the dataset. A run that was cut off goes on with the chunks that have no mark of its round yet."""
    work = await load(run, writer)
    await reading.note(run, work.dataset)
    lost = await prepare(work)
    if work.only_changed and not len(work.chunks) and not lost:
        return await nothing_changed(run, work.dataset)
    await run.progress(0, "Reading what the dataset holds", force=True)
    screening = await Screening.load(run, storage)
    keeper = Keeper(run, writer, work.dataset, screening, work.target)
    await keeper.restore()
    rounds = await _rounds(work, keeper)
    outcome = Outcome(
        target=work.target,
        rounds=rounds,
        asked=len(work.times),
        exhausted=sum(count == 0 for count in await room(work)),
        references=screening.reference_rows,
        changed_chunks=len(work.chunks) if work.only_changed else None,
    )
    await run.progress(_ALL_ROUNDS, "Splitting the examples", force=True)
    return await conclude(work, outcome)


async def _rounds(work: Work, keeper: Keeper) -> int:
    """Asks until there is enough, nothing comes any more, or MOST_ROUNDS are over; the number of the last round."""
    number, is_resumed = await _resume_at(work)
    while True:
        current = Round(number)
        plan = await _plan(work, keeper, current)
        current.planned = sum(1 for count in plan if count)
        await _ask_round(work, keeper, current, plan)
        work.barren |= current.barren
        if work.target is None or planning.is_enough(keeper.valid, work.target) or number == planning.MOST_ROUNDS:
            return number
        # A round that was cut off added more than this run of it saw.
        if not is_resumed and current.added <= planning.LEAST_GAIN * work.target:
            return number
        number, is_resumed = number + 1, False


async def _resume_at(work: Work) -> tuple[int, bool]:
    """The round to go on with, and whether this job has asked anything in it before."""
    async with work.run.reading() as session:
        last = await session.scalar(select(func.max(ChunkMark.round)).where(ChunkMark.job_id == work.run.claim.id))
    return (1, False) if last is None else (int(last), True)


async def _plan(work: Work, keeper: Keeper, current: Round) -> Sequence[int]:
    """How many examples to ask of each chunk in this round, in their order; 0 for those that it has asked already.

    The first round is planned alike by every run of the job, so one that was cut off asks for just what is left. Later
    ones share out what is missing by then.
    """
    async with work.run.reading() as session:
        marked = select(ChunkMark.chunk_id).where(
            ChunkMark.job_id == work.run.claim.id, ChunkMark.round == current.number
        )
        done = set(await session.scalars(marked))
    if work.target is None:
        assert work.most is not None, "without a target there is a count for each chunk"
        plan: Sequence[int] = array("i", [work.most]) * len(work.chunks)
    elif current.number == 1:
        most = [planning.capacity(weight, work.most) for weight in work.chunks.weights]
        plan = planning.spread(work.chunks.weights, max(0, work.target - await valid_elsewhere(work)), most)
    else:
        left = await room(work)
        most = [0 if chunk_id in done else count for chunk_id, count in zip(work.chunks.ids, left, strict=True)]
        plan = planning.spread(most, planning.still_to_ask(keeper.valid, work.target, keeper.asked), most)
    return array("i", (0 if chunk_id in done else count for chunk_id, count in zip(work.chunks.ids, plan, strict=True)))


async def _ask_round(work: Work, keeper: Keeper, current: Round, plan: Sequence[int]) -> None:
    """Asks the planned chunks, until the target is reached."""
    wanted = {chunk_id: count for chunk_id, count in zip(work.chunks.ids, plan, strict=True) if count}
    if not wanted:
        return
    ids = array("q", wanted)
    known = work.dataset.id if any(work.times[chunk_id] for chunk_id in ids) else None
    start, end = (0.0, _FIRST_ROUND) if current.number == 1 else (_FIRST_ROUND, _ALL_ROUNDS)

    async def pending() -> AsyncGenerator[Source, None]:
        async with aclosing(sources.texts(work.run, ids, dataset_id=known)) as found:
            async for source in found:
                if keeper.is_full:
                    return
                yield source

    async def answer(source: Source) -> Answer:
        work.times[source.id] += 1
        return await ask(work.writer, work.project, source, wanted[source.id], times=work.times[source.id])

    async def keep(batch: list[Answer]) -> None:
        await keeper.keep(batch, current)
        share = start + (end - start) * current.finished / current.planned
        again = f", round {current.number}" if current.number > 1 else ""
        await work.run.progress(share, f"Chunk {current.finished}/{current.planned}{again}")

    await work.run.progress(start, "Asking the model", force=True)
    async with aclosing(pending()) as items:
        # The model bounds how many requests are really under way.
        concurrency = min(work.writer.max_concurrency, len(ids))
        await ask_and_keep(items, answer, keep, concurrency=concurrency, ahead=(concurrency + 1) // 2)
