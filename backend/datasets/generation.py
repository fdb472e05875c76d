"""The generation job: chunk by chunk through the model, each chunk committed once and never asked for again."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import ledger
from backend.contents import queries as content_queries
from backend.contents.chunking import TokenCounter
from backend.contents.models import Chunk
from backend.datasets import queries, service
from backend.datasets.errors import NoChunks, NothingGenerated
from backend.datasets.models import ChunkMark, Dataset, Example
from backend.datasets.pipeline import ask_and_keep
from backend.datasets.planning import spread
from backend.datasets.splitting import held_out, path_of
from backend.datasets.strategies.base import ChunkText, ExampleDraft, GenerationStrategy, TaskType
from backend.datasets.strategies.run import ChunkOutcome, generate_for_chunk
from backend.jobs.running import JobRun
from backend.kit.db import is_one_of
from backend.kit.text import storable
from backend.projects import queries as project_queries
from backend.projects.models import Project
from backend.providers.llm.base import ChatModel

_Answer = tuple[Chunk, ChunkOutcome]
# Share of the progress bar that the model's work takes; the rest is splitting.
_MODEL_SHARE = 95.0


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes the examples, and who counts their tokens."""

    model: ChatModel
    strategy: GenerationStrategy
    counter: TokenCounter
    max_concurrency: int


async def preview(run: JobRun, writer: Writer) -> dict[str, Any]:
    """Replaces the dataset's preview examples by a few new ones from chunks spread over the documents."""
    work = await _load(run)
    target = int(run.params["target"])
    outcomes = await _ask_all(run, writer, work, spread([chunk.token_count for chunk in work.chunks], target))
    drafts = [(chunk, draft) for chunk, outcome in outcomes for draft in outcome.drafts if draft.is_valid][:target]
    if not drafts:
        raise NothingGenerated(chunks=len(outcomes))
    tokens = await _count_tokens(writer, [draft for _, draft in drafts])
    async with run.writing() as session:
        await session.execute(delete(Example).where(Example.dataset_id == work.dataset.id, Example.split == "preview"))
        asked = [chunk.id for chunk, _ in drafts]
        alive = set(
            await session.scalars(
                select(Chunk.id).where(Chunk.id.in_(asked)).with_for_update(read=True, key_share=True)
            )
        )
        session.add_all(
            _row(work.dataset, chunk, draft, count, "preview")
            for (chunk, draft), count in zip(drafts, tokens, strict=True)
            if chunk.id in alive  # else its file was deleted meanwhile
        )
        await _name_model(session, work.dataset, writer)
    return {"total_generated": len(drafts), "valid": len(drafts)}


async def generate(run: JobRun, writer: Writer) -> dict[str, Any]:
    """Fills the dataset. A run that was cut off goes on with the chunks that have no mark yet."""
    work = await _load(run)
    wanted = _wanted(run, work)
    async with run.reading() as session:
        done = await queries.marked_chunks(session, run.claim.id)
    open_chunks = [(chunk, count) for chunk, count in zip(work.chunks, wanted, strict=True) if count]
    finished = sum(chunk.id in done for chunk, _ in open_chunks)
    pending = [(chunk, count) for chunk, count in open_chunks if chunk.id not in done]
    await run.progress(_MODEL_SHARE * finished / len(open_chunks), "Asking the model", force=True)

    async def keep(batch: list[_Answer]) -> None:
        nonlocal finished
        tokens = [await _count_tokens(writer, outcome.drafts) for _, outcome in batch]
        async with run.writing() as session:
            for (chunk, outcome), counts in zip(batch, tokens, strict=True):
                await _store(session, run, work.dataset, chunk, outcome, counts)
        finished += len(batch)
        share = _MODEL_SHARE * finished / len(open_chunks)
        await run.progress(share, f"Chunk {finished}/{len(open_chunks)}")

    await _for_each(pending, writer, work, keep)
    return await _conclude(run, writer, work, asked=len(open_chunks))


@dataclass(frozen=True, slots=True)
class _Work:
    project: Project
    dataset: Dataset
    chunks: Sequence[Chunk]


async def _load(run: JobRun) -> _Work:
    async with run.reading() as session:
        project = await project_queries.get_by_id(session, run.project_id)
        chunks = await content_queries.list_chunks(session, run.project_id)
        dataset = await session.get_one(Dataset, int(run.params["dataset_id"]))
    if not chunks:
        raise NoChunks(project_id=str(project.public_id))
    return _Work(project, dataset, chunks)


def _wanted(run: JobRun, work: _Work) -> list[int]:
    per_chunk = run.params["examples_per_chunk"]
    weights = [chunk.token_count for chunk in work.chunks]
    if run.params["target"] is None:
        return [int(per_chunk)] * len(weights)
    wanted = spread(weights, int(run.params["target"]))
    return wanted if per_chunk is None else [min(count, int(per_chunk)) for count in wanted]


async def _ask_all(run: JobRun, writer: Writer, work: _Work, wanted: list[int]) -> list[_Answer]:
    outcomes: list[_Answer] = []
    pending = [(chunk, count) for chunk, count in zip(work.chunks, wanted, strict=True) if count]

    async def keep(batch: list[_Answer]) -> None:
        outcomes.extend(batch)
        await run.progress(_MODEL_SHARE * len(outcomes) / len(pending), f"Chunk {len(outcomes)}/{len(pending)}")

    await _for_each(pending, writer, work, keep)
    return sorted(outcomes, key=lambda pair: pair[0].id)


async def _for_each(
    pending: list[tuple[Chunk, int]], writer: Writer, work: _Work, keep: Callable[[list[_Answer]], Awaitable[None]]
) -> None:
    async def ask(item: tuple[Chunk, int]) -> _Answer:
        chunk, count = item
        text = _text_of(work.project, chunk)
        return chunk, await generate_for_chunk(writer.model, writer.strategy, text, count)

    await ask_and_keep(pending, ask, keep, concurrency=min(writer.max_concurrency, max(len(pending), 1)))


async def _store(
    session: AsyncSession, run: JobRun, dataset: Dataset, chunk: Chunk, outcome: ChunkOutcome, tokens: list[int]
) -> None:
    """Commits a chunk's examples and its mark together."""
    alive = select(Chunk.id).where(Chunk.id == chunk.id).with_for_update(read=True, key_share=True)
    if await session.scalar(alive) is None:
        return  # its file was deleted meanwhile: nobody wants these examples any more
    rows = [_row(dataset, chunk, draft, count, "train") for draft, count in zip(outcome.drafts, tokens, strict=True)]
    known = await queries.known_fingerprints(session, dataset.id, [row.fingerprint for row in rows])
    for row in rows:
        if row.is_valid and row.fingerprint in known:
            row.is_valid, row.invalid_reason = False, "duplicate"
        known.add(row.fingerprint)
    session.add_all(rows)
    session.add(
        ChunkMark(
            job_id=run.claim.id,
            dataset_id=dataset.id,
            chunk_id=chunk.id,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
        )
    )
    await session.flush()


async def _conclude(run: JobRun, writer: Writer, work: _Work, *, asked: int) -> dict[str, Any]:
    """Splits the examples by section, counts the characters once, and makes the dataset ready."""
    dataset_id = work.dataset.id
    async with run.writing() as session:
        rows = (
            await session.execute(
                select(Example.id, Chunk.content_id, Chunk.meta)
                .outerjoin(Chunk, Chunk.id == Example.chunk_id)
                .where(Example.dataset_id == dataset_id, Example.is_valid, Example.split != "preview")
                .order_by(Example.chunk_id, Example.id)
            )
        ).all()
        if not rows:
            raise NothingGenerated(chunks=asked)
        paths = [path_of(row.content_id, row.meta or {}) for row in rows]
        split = held_out(paths, service.split_share(work.project))
        evaluation = [row.id for row, out in zip(rows, split, strict=True) if out]
        await session.execute(
            update(Example).where(Example.dataset_id == dataset_id, Example.split == "eval").values(split="train")
        )
        await session.execute(update(Example).where(is_one_of(Example.id, evaluation)).values(split="eval"))
        await _name_model(session, work.dataset, writer)
        await session.execute(update(Dataset).where(Dataset.id == dataset_id).values(status="ready"))
        await ledger.record_usage(
            session,
            user_id=run.claim.user_id,
            characters=await content_queries.character_count(session, run.project_id),
            reference=f"job:{run.claim.public_id}",
            params={"dataset": str(work.dataset.public_id), "name": work.dataset.name},
        )
        return service.summary(await service.stats(session, work.dataset))


async def _name_model(session: AsyncSession, dataset: Dataset, writer: Writer) -> None:
    await session.execute(update(Dataset).where(Dataset.id == dataset.id).values(model=writer.model.model))


async def _count_tokens(writer: Writer, drafts: Sequence[ExampleDraft]) -> list[int]:
    texts = [
        storable("\n".join(part for part in (draft.instruction, draft.input, draft.output) if part)) for draft in drafts
    ]
    return await asyncio.to_thread(writer.counter.count_many, texts)


def _text_of(project: Project, chunk: Chunk) -> ChunkText:
    return ChunkText(
        text=chunk.text,
        position=chunk.chunk_index,
        page_start=chunk.meta.get("page_start"),
        page_end=chunk.meta.get("page_end"),
        headings=tuple(chunk.meta.get("headings") or ()),
        task_type=TaskType(project.task_type),
        labels=tuple(project.config.get("labels") or ()),
    )


def _row(dataset: Dataset, chunk: Chunk, draft: ExampleDraft, token_count: int, split: str) -> Example:
    meta: dict[str, Any] = {**draft.meta}
    if draft.quote:
        meta["quote"] = storable(draft.quote)
    if draft.page is not None:
        meta["page"] = draft.page
    instruction, given, output = (storable(part) for part in (draft.instruction, draft.input, draft.output))
    return Example(
        dataset_id=dataset.id,
        chunk_id=chunk.id,
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


def fingerprint(*parts: str) -> str:
    """SHA-256 over the parts in lower case with their white space made one."""
    text = "\x1f".join(" ".join(part.lower().split()) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()
