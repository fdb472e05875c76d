"""How many characters a generation reads. What it is charged is noted when it begins: documents that are deleted while
they are read, and examples that stay after a cancel, have been read all the same.
"""

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents import queries as content_queries
from backend.contents.models import Chunk
from backend.datasets import queries
from backend.datasets.models import ChunkMark, Dataset
from backend.jobs import queue
from backend.jobs.models import Job
from backend.jobs.running import JobRun


def last_chunk_of(dataset: Dataset) -> int:
    """The last chunk that the dataset's latest whole generation knew; 0 where there was none."""
    return int((dataset.report.get("generation") or {}).get("last_chunk_id") or 0)


async def note(run: JobRun, dataset: Dataset) -> None:
    """Writes into the job what it reads, once for all its runs; before anything is asked."""
    if queries.CHARACTERS in run.params:
        return
    async with run.writing() as session:
        if run.params.get("only_changed"):
            found = await of_changes(session, dataset, job_id=run.claim.id)
        else:
            wanted = run.params.get("content_ids")
            found = await content_queries.chunked_characters(session, run.project_id, content_ids=wanted)
        await queue.note(session, run.claim, **{queries.CHARACTERS: found})


async def of_changes(session: AsyncSession, dataset: Dataset, *, job_id: int) -> int:
    """The characters of the chunks that came since the last generation and that no job but this one has asked."""
    asked = select(ChunkMark.id).where(
        ChunkMark.chunk_id == Chunk.id, ChunkMark.dataset_id == dataset.id, ChunkMark.job_id != job_id
    )
    return await _characters(session, dataset, ~asked.exists())


async def until_cancelled(session: AsyncSession, dataset: Dataset, job: Job) -> int:
    """What a cancelled job has read of the changes: the examples of that stay, in a dataset that is ready."""
    asked = select(ChunkMark.id).where(ChunkMark.chunk_id == Chunk.id, ChunkMark.dataset_id == dataset.id)
    return max(int(job.params.get(queries.CHARACTERS, 0)) - await _characters(session, dataset, ~asked.exists()), 0)


async def _characters(session: AsyncSession, dataset: Dataset, *which: ColumnElement[bool]) -> int:
    counted = select(func.sum(func.length(Chunk.text))).where(
        Chunk.project_id == dataset.project_id, Chunk.id > last_chunk_of(dataset), *which
    )
    return int(await session.scalar(counted) or 0)
