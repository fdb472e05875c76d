"""The chunking job: stored text to chunk rows in bounded memory, keeping the rows of chunks that did not change."""

import asyncio
import json
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, cast

from sqlalchemy import bindparam, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents import queries
from backend.contents.blocks import read_blocks
from backend.contents.chunking import ChunkDraft, ChunkMetadata, TokenCounter, chunk
from backend.contents.models import Chunk, Content
from backend.contents.work_folders import own_folder
from backend.jobs.running import JobRun
from backend.kit.db import is_one_of
from backend.storage import BlobNotFound, Storage

_ROWS_AT_ONCE = 200


async def run(
    run: JobRun,
    storage: Storage,
    counter: TokenCounter,
    folder: Path,
    *,
    only: Collection[int] | None = None,
    sizes: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Cuts every document of the project, or the given ones; running it again with the same sizes changes nothing.

    `sizes` are the chunks' and their overlap's in tokens; default: those that the job names. Texts and chunks on their
    way lie in `folder`. A document's chunks become visible all at once.
    """
    async with run.reading() as session:
        contents = [
            item
            for item in await queries.list_contents(session, run.project_id, kind="raw_doc")
            if item.text_key and (only is None or item.id in only)
        ]
    size, overlap = sizes or (int(run.params["chunk_size_tokens"]), int(run.params["chunk_overlap_tokens"]))
    total = 0
    with own_folder(folder, str(run.claim.public_id)) as own:
        for number, content in enumerate(contents):
            await run.progress(100 * number / len(contents), f"Chunking {content.name}", force=True)
            text = own / "text.jsonl"
            if not await _fetch(run, storage, content, text):
                continue
            spool = await _cut(counter, text, own / "chunks.jsonl", size, overlap)
            async with run.writing() as session:
                await _store(session, content, spool)
            total += len(spool.digests)
    return {"files": len(contents), "chunks": total}


@dataclass(frozen=True, slots=True)
class _Spool:
    """A document's chunks in a file, one a line, and the SHA-256 of each text."""

    path: Path
    digests: Sequence[bytes]

    def drafts(self) -> Iterator[ChunkDraft]:
        with self.path.open("rb") as file:
            for index, line in enumerate(file):
                content, tokens, metadata = json.loads(line)
                yield ChunkDraft(index, content, tokens, cast(ChunkMetadata, metadata))


async def _fetch(run: JobRun, storage: Storage, content: Content, path: Path) -> bool:
    """Saves a stored text to `path`; False when its file was deleted meanwhile."""
    assert content.text_key is not None
    try:
        await storage.save_to(content.text_key, path)
    except BlobNotFound:
        async with run.reading() as session:
            if await session.get(Content, content.id) is not None:
                raise
        return False
    return True


async def _cut(counter: TokenCounter, text: Path, path: Path, size: int, overlap: int) -> _Spool:
    """Cuts a text into chunks that wait in a file: the server ends a transaction that would wait for them."""
    ended = threading.Event()

    def cut() -> _Spool:
        digests: list[bytes] = []
        with text.open("rb") as source, path.open("wb") as spool:
            drafts = chunk(read_blocks(source), counter, chunk_size_tokens=size, chunk_overlap_tokens=overlap)
            for draft in drafts:
                if ended.is_set():
                    break
                digests.append(sha256(draft.content.encode()).digest())
                line = [draft.content, draft.token_count, draft.metadata]
                spool.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        return _Spool(path, digests)

    try:
        # In a thread: counting tokens is pure CPU, and the loop must stay free for a cancel.
        return await asyncio.to_thread(cut)
    finally:
        ended.set()


async def _store(session: AsyncSession, content: Content, spool: _Spool) -> None:
    """Makes the rows equal to the chunks. A chunk whose text is the same keeps its row, and with it its examples.

    So it does when its place in the document is another: an inserted paragraph moves all chunks behind it.
    """
    alive = select(Content.id).where(Content.id == content.id).with_for_update(read=True, key_share=True)
    if await session.scalar(alive) is None:
        return  # the file was deleted meanwhile, and its chunks with it
    digest = func.sha256(func.convert_to(Chunk.text, "UTF8"))
    rows = (
        await session.execute(
            select(Chunk.id, Chunk.chunk_index, digest)
            .where(Chunk.content_id == content.id)
            .order_by(Chunk.chunk_index.desc())
        )
    ).all()
    same: dict[bytes, list[tuple[int, int]]] = {}
    for row_id, old_index, found in rows:
        same.setdefault(found, []).append((row_id, old_index))
    kept: dict[int, int] = {}
    moved: list[int] = []
    for index, wanted in enumerate(spool.digests):
        if alike := same.get(wanted):
            kept[index], old_index = alike.pop()
            if old_index != index:
                moved.append(kept[index])
    stale = [row_id for left in same.values() for row_id, _ in left]
    await session.execute(delete(Chunk).where(is_one_of(Chunk.id, stale)))
    # Out of each other's way first: no two rows may have the same place, not even for a moment.
    aside = update(Chunk).where(is_one_of(Chunk.id, moved)).values(chunk_index=-1 - Chunk.chunk_index)
    await session.execute(aside, execution_options={"synchronize_session": False})
    drafts = spool.drafts()
    while batch := list(islice(drafts, _ROWS_AT_ONCE)):
        await _update_rows(session, [(kept[draft.index], draft) for draft in batch if draft.index in kept])
        await _insert_rows(session, content, [draft for draft in batch if draft.index not in kept])


async def _update_rows(session: AsyncSession, kept: Sequence[tuple[int, ChunkDraft]]) -> None:
    """Writes what may have changed beside the text, to the rows where it did."""
    if not kept:
        return
    columns = (Chunk.chunk_index, Chunk.token_count, Chunk.meta)
    new = {column.key: bindparam(f"new_{column.key}", type_=column.type) for column in columns}
    statement = (
        update(Chunk)
        .where(Chunk.id == bindparam("row_id"), or_(*(column != new[column.key] for column in columns)))
        .values(new)
    )
    await (await session.connection()).execute(
        statement,
        [
            {
                "row_id": row_id,
                "new_chunk_index": draft.index,
                "new_token_count": draft.token_count,
                "new_meta": draft.metadata,
            }
            for row_id, draft in kept
        ],
    )


async def _insert_rows(session: AsyncSession, content: Content, drafts: Sequence[ChunkDraft]) -> None:
    if not drafts:
        return
    rows = [
        {
            "project_id": content.project_id,
            "content_id": content.id,
            "chunk_index": draft.index,
            "text": draft.content,
            "token_count": draft.token_count,
            "meta": draft.metadata,
        }
        for draft in drafts
    ]
    await (await session.connection()).execute(insert(Chunk), rows)
