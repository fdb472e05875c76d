"""The chunking job: stored text to chunk rows, keeping the rows of chunks that did not change."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents import queries
from backend.contents.blocks import read_blocks
from backend.contents.chunking import ChunkDraft, TokenCounter, chunk
from backend.contents.models import Chunk, Content
from backend.jobs.running import JobRun
from backend.kit.db import is_one_of
from backend.storage import BlobNotFound, Storage


async def run(run: JobRun, storage: Storage, counter: TokenCounter) -> dict[str, Any]:
    """Cuts every document of the project; running it again with the same sizes changes nothing."""
    async with run.reading() as session:
        contents = [
            item for item in await queries.list_contents(session, run.project_id, kind="raw_doc") if item.text_key
        ]
    total = 0
    for number, content in enumerate(contents):
        await run.progress(100 * number / len(contents), f"Chunking {content.name}", force=True)
        drafts = await _cut(run, storage, counter, content)
        if drafts is None:
            continue
        async with run.writing() as session:
            await _store(session, content, drafts)
        total += len(drafts)
    return {"files": len(contents), "chunks": total}


async def _cut(run: JobRun, storage: Storage, counter: TokenCounter, content: Content) -> list[ChunkDraft] | None:
    """The chunks of a stored text; None when its file was deleted meanwhile."""
    assert content.text_key is not None
    with tempfile.TemporaryDirectory(prefix="finetuneflow-chunk-") as folder:
        path = Path(folder) / "text.jsonl"
        try:
            await storage.save_to(content.text_key, path)
        except BlobNotFound:
            async with run.reading() as session:
                if await session.get(Content, content.id) is not None:
                    raise
            return None

        def cut() -> list[ChunkDraft]:
            with path.open("rb") as file:
                return list(
                    chunk(
                        read_blocks(file),
                        counter,
                        chunk_size_tokens=int(run.params["chunk_size_tokens"]),
                        chunk_overlap_tokens=int(run.params["chunk_overlap_tokens"]),
                    )
                )

        # In a thread: counting tokens is pure CPU, and the loop must stay free for a cancel.
        return await asyncio.to_thread(cut)


async def _store(session: AsyncSession, content: Content, drafts: list[ChunkDraft]) -> None:
    """Makes the rows equal to the drafts. A chunk whose text is the same keeps its row, and with it its examples."""
    alive = select(Content.id).where(Content.id == content.id).with_for_update(read=True, key_share=True)
    if await session.scalar(alive) is None:
        return  # the file was deleted meanwhile, and its chunks with it
    rows = (await session.scalars(select(Chunk).where(Chunk.content_id == content.id))).all()
    present = {row.chunk_index: row for row in rows}
    kept = {
        draft.index for draft in drafts if (row := present.get(draft.index)) is not None and row.text == draft.content
    }
    stale = [row.id for index, row in present.items() if index not in kept]
    if stale:
        await session.execute(delete(Chunk).where(is_one_of(Chunk.id, stale)))
    for draft in drafts:
        if draft.index in kept:
            present[draft.index].token_count = draft.token_count
            present[draft.index].meta = dict(draft.metadata)
    session.add_all(
        Chunk(
            project_id=content.project_id,
            content_id=content.id,
            chunk_index=draft.index,
            text=draft.content,
            token_count=draft.token_count,
            meta=dict(draft.metadata),
        )
        for draft in drafts
        if draft.index not in kept
    )
    await session.flush()
