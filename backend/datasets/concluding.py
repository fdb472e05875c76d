"""The end of a generation: the split by sections without leaks, the report, and the dataset made ready."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets import dividing, planning, queries, stats
from backend.datasets.asking import Writer
from backend.datasets.errors import NothingGenerated
from backend.datasets.keeping import CONTAMINATED, DUPLICATE, JUDGED_LOW, NEAR_DUPLICATE
from backend.datasets.models import ChunkMark, Dataset, Example
from backend.datasets.preparing import Work
from backend.datasets.stats import DatasetStats
from backend.jobs.models import Job
from backend.jobs.running import JobRun
from backend.kit.db import is_one_of

_JUDGED = text("""
SELECT count(*) FILTER (WHERE jsonb_typeof(meta->'judge') = 'object') AS judged,
       count(*) FILTER (WHERE jsonb_typeof(meta->'judge') = 'null') AS unjudged,
       avg((meta->'judge'->>'faithfulness')::float) AS faithfulness,
       avg((meta->'judge'->>'usefulness')::float) AS usefulness
FROM examples WHERE dataset_id = :dataset_id AND split <> 'preview' AND meta ? 'judge'
""")
_LANGUAGES = text("""
SELECT meta->>'language' AS language, count(*) AS examples
FROM examples WHERE dataset_id = :dataset_id AND split <> 'preview' AND is_valid AND meta ? 'language'
GROUP BY 1 ORDER BY 2 DESC
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the rounds came to. `exhausted` counts the chunks that have nothing more to give."""

    target: int | None
    rounds: int
    asked: int
    exhausted: int
    references: int
    changed_chunks: int | None


async def conclude(work: Work, outcome: Outcome) -> dict[str, Any]:
    """Splits the examples, counts the characters, and makes the dataset ready. Returns what the job shows.

    Raises NothingGenerated when the dataset has no valid example that a model wrote.
    """
    run, dataset = work.run, work.dataset
    division = await dividing.divide(work)
    async with run.writing() as session:
        await queries.lock(session, dataset.id)
        valid = await _valid_generated(session, dataset)
        if not valid:
            raise NothingGenerated(chunks=outcome.asked)
        for ids, split in ((division.to_eval, "eval"), (division.to_train, "train")):
            if ids:
                await session.execute(update(Example).where(is_one_of(Example.id, ids)).values(split=split))
        await session.flush()
        found = await stats.of(session, dataset)
        short = _shortfall(outcome, valid, found)
        tokens, elapsed = await _cost(session, run)
        report = {
            "rounds": outcome.rounds,
            "tokens": tokens,
            "elapsed_seconds": elapsed,
            "shortfall": short,
            "leakage": division.leakage,
            "decontamination": {
                "reference_rows": outcome.references,
                "contaminated": found.validation_errors.get(CONTAMINATED, 0),
            },
            "judge": await _judged(session, dataset, found),
            "languages": {row.language: row.examples for row in await _rows(session, _LANGUAGES, dataset)},
            "generation": {
                "target": outcome.target or valid,
                "weight": work.whole.weight,
                "last_chunk_id": max(work.whole.ids),
                "model": work.writer.model.model,
            },
        }
        # One that was made for a base model keeps its name; the report has the writer's.
        model = dataset.model if run.params.get("keeps_model") else work.writer.model.model
        await session.execute(
            update(Dataset).where(Dataset.id == dataset.id).values(status="ready", model=model, report=report)
        )
        # The job's ending charges them, in the transaction that makes it a success: no failure is billed.
        processed = int(run.params[queries.CHARACTERS])
    changed = {} if outcome.changed_chunks is None else {"changed_chunks": outcome.changed_chunks}
    return {**stats.summary(found), **_counts(found, report), **changed, queries.CHARACTERS: processed}


async def nothing_changed(run: JobRun, dataset: Dataset) -> dict[str, Any]:
    """The end of a run that had no chunk to ask."""
    async with run.writing() as session:
        await session.execute(update(Dataset).where(Dataset.id == dataset.id).values(status="ready"))
        found = await stats.of(session, dataset)
    message = "Nothing has changed since the last generation: every chunk was there already, and no model was asked."
    return {**stats.summary(found), "changed_chunks": 0, "message": message}


async def name_model(session: AsyncSession, dataset: Dataset, writer: Writer) -> None:
    await session.execute(update(Dataset).where(Dataset.id == dataset.id).values(model=writer.model.model))


async def _valid_generated(session: AsyncSession, dataset: Dataset) -> int:
    counted = select(func.count()).where(
        Example.dataset_id == dataset.id, Example.source == "generated", Example.is_valid, Example.split != "preview"
    )
    return int(await session.scalar(counted) or 0)


def _shortfall(outcome: Outcome, valid: int, found: DatasetStats) -> dict[str, Any] | None:
    """What is missing and why; None when the target is met within its tolerance."""
    if outcome.target is None or planning.is_enough(valid, outcome.target):
        return None
    refused = ", ".join(
        f"{count} {reason}" for reason, count in sorted(found.validation_errors.items(), key=lambda item: -item[1])
    )
    reason = (
        f"{valid} of {outcome.target} examples are valid after {outcome.rounds} round{'s'[: outcome.rounds > 1]}. "
        f"{outcome.exhausted} chunk{' has' if outcome.exhausted == 1 else 's have'} no more to give"
        f"{f', and these were refused: {refused}' if refused else ''}. "
        "Add documents, ask for fewer examples, or use a stronger model."
    )
    return {
        "wanted": outcome.target,
        "valid": valid,
        "reason": reason,
        "invalid": found.validation_errors,
        "chunks_exhausted": outcome.exhausted,
    }


def _counts(found: DatasetStats, report: dict[str, Any]) -> dict[str, Any]:
    """What the job shows beside the totals."""
    return {
        "duplicates": found.validation_errors.get(DUPLICATE, 0),
        "near_duplicates": found.validation_errors.get(NEAR_DUPLICATE, 0),
        "contaminated": found.validation_errors.get(CONTAMINATED, 0),
        **{name: report[name] for name in ("rounds", "shortfall", "leakage", "judge", "tokens", "elapsed_seconds")},
    }


async def _cost(session: AsyncSession, run: JobRun) -> tuple[dict[str, int], float]:
    """The tokens that the job's committed answers took, those of runs that were cut off included, and its seconds."""
    tokens = (
        await session.execute(
            select(
                func.coalesce(func.sum(ChunkMark.prompt_tokens), 0),
                func.coalesce(func.sum(ChunkMark.completion_tokens), 0),
            ).where(ChunkMark.job_id == run.claim.id)
        )
    ).one()
    elapsed = await session.scalar(
        select(func.extract("epoch", func.clock_timestamp() - Job.started_at)).where(Job.id == run.claim.id)
    )
    return {"prompt": int(tokens[0]), "completion": int(tokens[1])}, round(float(elapsed or 0), 1)


async def _judged(session: AsyncSession, dataset: Dataset, found: DatasetStats) -> dict[str, Any] | None:
    """Mean scores from 1 to 5; None when no judge was asked."""
    row = (await _rows(session, _JUDGED, dataset))[0]
    if not row.judged + row.unjudged:
        return None
    return {
        "judged": row.judged,
        "unjudged": row.unjudged,
        "refused": found.validation_errors.get(JUDGED_LOW, 0),
        "faithfulness": None if row.faithfulness is None else round(row.faithfulness, 2),
        "usefulness": None if row.usefulness is None else round(row.usefulness, 2),
    }


async def _rows(session: AsyncSession, statement: Any, dataset: Dataset) -> list[Any]:
    return list((await session.execute(statement, {"dataset_id": dataset.id})).all())
