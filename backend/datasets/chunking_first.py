"""The job before a generation from chosen contents: waits until they have text, and cuts those without chunks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from backend.billing import charging
from backend.contents import chunk_job
from backend.contents import queries as content_queries
from backend.contents.chunking import TokenCounter
from backend.contents.models import Content
from backend.datasets.errors import ContentNotReady, ContentsPending
from backend.datasets.models import Dataset
from backend.jobs import queue
from backend.jobs.running import JobRun
from backend.kit.config import Settings
from backend.kit.db import is_one_of
from backend.storage import Storage

# What the studio's chunks/generate takes by default.
CHUNK_SIZE_TOKENS, CHUNK_OVERLAP_TOKENS = 512, 50
_PENDING = ("pending", "processing")


async def prepare(
    run: JobRun, settings: Settings, storage: Storage, counter: TokenCounter, folder: Path
) -> dict[str, Any]:
    """Chunks that are there already stay as they are. Contents that were deleted meanwhile are left out.

    Once all have their text, their characters are held, before anything is cut or a model is asked.
    Raises ContentsPending while one has no text yet, ContentNotReady when one cannot be read or all are gone,
    InsufficientCharacters.
    """
    wanted = [int(number) for number in run.params["content_ids"]]
    async with run.reading() as session:
        rows = await session.scalars(
            select(Content).where(Content.project_id == run.project_id, is_one_of(Content.id, wanted))
        )
        contents = rows.all()
        to_cut = await content_queries.without_chunks(session, [content.id for content in contents])
    failed = [content.id for content in contents if content.status == "error"]
    if failed or not contents:
        raise ContentNotReady(content_ids=failed or wanted)
    pending = sum(content.status in _PENDING for content in contents)
    if pending:
        raise ContentsPending(count=pending)
    await _cover(run, settings, [content.id for content in contents])
    if not to_cut:
        return {"files": 0, "chunks": 0}
    return await chunk_job.run(
        run,
        storage,
        counter,
        folder,
        only=set(to_cut),
        sizes=(CHUNK_SIZE_TOKENS, CHUNK_OVERLAP_TOKENS),
    )


async def _cover(run: JobRun, settings: Settings, content_ids: Sequence[int]) -> None:
    """Holds what the contents turned out to have beyond what was known when the job was asked for."""
    held = run.params.get("hold_id")
    async with run.writing() as session:
        characters = await content_queries.character_count(session, run.project_id, content_ids=content_ids)
        if held is not None:
            await charging.top_up(session, settings, int(held), characters)
            return
        dataset = await session.get(Dataset, int(run.params["dataset_id"]))
        found = await charging.reserve(
            session,
            settings,
            user_id=run.claim.user_id,
            characters=characters,
            reference=f"job:{run.claim.public_id}",
            purpose=charging.GENERATION,
            job_id=run.claim.id,
            params={} if dataset is None else {"dataset": str(dataset.public_id)},
        )
        if found is not None:
            await queue.note(session, run.claim, hold_id=found.id)
