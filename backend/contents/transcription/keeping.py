"""Stores a transcript as a content's document, once and whole, and tells a content that its work begins."""

import asyncio
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents import extraction, queries
from backend.contents.errors import ProjectFull
from backend.contents.models import Content
from backend.contents.transcription.transcripts import Transcript, write_text, write_vtt
from backend.jobs.running import JobRun
from backend.projects.models import Project
from backend.storage import Storage, file_digest


async def begin(run: JobRun) -> Content | None:
    """The content, which is being processed from now on; None when it was deleted meanwhile."""
    async with run.writing() as session:
        content = await locked(session, int(run.params["content_id"]))
        if content is not None:
            content.status = "processing"
            content.error_code = content.error_message = content.error_context = None
        return content


async def keep(
    run: JobRun, storage: Storage, content: Content, transcript: Transcript, folder: Path, *, max_project_mb: int
) -> int | None:
    """Stores text and captions and makes the content ready; returns its characters, None when it was deleted meanwhile.

    An uploaded recording keeps its own file; a video's is the transcript as WebVTT. Raises ProjectFull.
    """
    text, captions = folder / "text.jsonl", folder / "transcript.vtt"
    summary = await asyncio.to_thread(write_text, transcript, text)
    language = transcript.language or await extraction.find_language(text)
    text_key = f"{content.file_key.rpartition('/')[0]}/-text.jsonl"
    is_video = content.type == "youtube"
    stored = [text_key, content.file_key] if is_video else [text_key]
    if is_video:
        await asyncio.to_thread(write_vtt, transcript, captions)
        await storage.put_file(content.file_key, captions)
    await storage.put_file(text_key, text)
    try:
        async with run.writing() as session:
            row = await locked(session, content.id)
            if row is not None:
                if is_video:
                    await _take_room(session, row, captions, max_project_mb)
                row.status = "ready"
                row.character_count = summary.character_count
                row.language = None if language is None else language.lower().partition("-")[0][:8]
                row.meta = transcript.meta()
                row.text_key = text_key
    except ProjectFull:
        await storage.delete(stored)
        raise
    if row is None:
        await storage.delete(stored)
        return None
    return summary.character_count


async def locked(session: AsyncSession, content_id: int) -> Content | None:
    return await session.get(Content, content_id, populate_existing=True, with_for_update=True)


async def _take_room(session: AsyncSession, row: Content, file: Path, max_project_mb: int) -> None:
    """Counts a new file against what a project may hold. Raises ProjectFull."""
    # Contents before projects, as in a deletion. Two that fill the project take turns.
    await session.execute(select(Project.id).where(Project.id == row.project_id).with_for_update(key_share=True))
    size = file.stat().st_size
    others = await queries.stored_bytes(session, row.project_id) - row.size_bytes
    if others + size > max_project_mb * 1024 * 1024:
        raise ProjectFull(limit_mb=max_project_mb)
    row.size_bytes, row.sha256 = size, file_digest(file)
