"""SELECTs over contents and chunks of a project that the caller owns."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents.errors import ContentNotFound
from backend.contents.models import Chunk, Content
from backend.kit.pagination import Page, Window
from backend.projects.models import Project


async def get_content(session: AsyncSession, project: Project, public_id: UUID) -> Content:
    content = await session.scalar(
        select(Content).where(Content.project_id == project.id, Content.public_id == public_id)
    )
    if content is None:
        raise ContentNotFound()
    return content


async def list_contents(session: AsyncSession, project_id: int, *, kind: str | None = None) -> Sequence[Content]:
    statement = select(Content).where(Content.project_id == project_id).order_by(Content.id)
    if kind is not None:
        statement = statement.where(Content.kind == kind)
    return (await session.scalars(statement)).all()


async def stored_bytes(session: AsyncSession, project_id: int) -> int:
    total = await session.scalar(select(func.sum(Content.size_bytes)).where(Content.project_id == project_id))
    return int(total or 0)


async def character_count(session: AsyncSession, project_id: int) -> int:
    """Characters of all documents of a project, as the server counted them."""
    total = await session.scalar(select(func.sum(Content.character_count)).where(Content.project_id == project_id))
    return int(total or 0)


async def stored_keys(session: AsyncSession) -> set[str]:
    """The storage keys that contents of all owners name."""
    rows = (await session.execute(select(Content.file_key, Content.text_key))).all()
    return {key for row in rows for key in row if key is not None}


async def has_contents(session: AsyncSession, project_id: int) -> bool:
    return await session.scalar(select(Content.id).where(Content.project_id == project_id).limit(1)) is not None


async def has_chunks(session: AsyncSession, project_id: int) -> bool:
    return await session.scalar(select(Chunk.id).where(Chunk.project_id == project_id).limit(1)) is not None


async def page_chunks(
    session: AsyncSession, project: Project, window: Window, *, source_file: UUID | None = None
) -> Page[Row[Any]]:
    """Chunks in reading order, with the public id of their file. A file of another project is a 404."""
    conditions = [Chunk.project_id == project.id]
    if source_file is not None:
        conditions.append(Chunk.content_id == (await get_content(session, project, source_file)).id)
    rows = await session.execute(
        select(
            Chunk.public_id,
            Content.public_id.label("source_file_id"),
            Chunk.chunk_index,
            Chunk.text,
            Chunk.token_count,
            Chunk.meta,
        )
        .join(Content, Content.id == Chunk.content_id)
        .where(*conditions)
        .order_by(Chunk.content_id, Chunk.chunk_index)
        .limit(window.limit)
        .offset(window.offset)
    )
    total = await session.scalar(select(func.count()).select_from(Chunk).where(*conditions))
    return Page(rows.all(), int(total or 0))


async def list_chunks(session: AsyncSession, project_id: int) -> Sequence[Chunk]:
    """All chunks of a project, in reading order."""
    statement = select(Chunk).where(Chunk.project_id == project_id).order_by(Chunk.content_id, Chunk.chunk_index)
    return (await session.scalars(statement)).all()
