"""SELECTs over contents and chunks of a project that the caller owns."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents.errors import ContentNotFound, UnknownContent
from backend.contents.models import Chunk, Content
from backend.jobs.models import Job
from backend.kit.db import is_one_of
from backend.kit.owner import Owner
from backend.kit.pagination import Page, Window
from backend.projects.models import Project


async def get_content(session: AsyncSession, project: Project, public_id: UUID) -> Content:
    content = await session.scalar(
        select(Content).where(Content.project_id == project.id, Content.public_id == public_id)
    )
    if content is None:
        raise ContentNotFound()
    return content


async def get_by_number(session: AsyncSession, owner: Owner, number: int) -> Content:
    """By the integer id that the platform face shows, in any project of the owner."""
    content = await session.scalar(
        select(Content)
        .join(Project, Project.id == Content.project_id)
        .where(Content.id == number, Project.user_id == owner.id)
    )
    if content is None:
        raise UnknownContent()
    return content


async def page_by_number(
    session: AsyncSession, owner: Owner, window: Window, *, project: Project | None = None
) -> Page[Content]:
    """The owner's contents in any state, newest first; of one project if it is given."""
    conditions = [Project.user_id == owner.id]
    if project is not None:
        conditions.append(Content.project_id == project.id)
    mine = select(Content).join(Project, Project.id == Content.project_id).where(*conditions)
    rows = await session.scalars(mine.order_by(Content.id.desc()).limit(window.limit).offset(window.offset))
    total = await session.scalar(
        select(func.count()).select_from(Content).join(Project, Project.id == Content.project_id).where(*conditions)
    )
    return Page(rows.all(), int(total or 0))


async def job_names(session: AsyncSession, contents: Sequence[Content]) -> dict[int, UUID]:
    """The public ids of the jobs that fetch or transcribe these contents, by the jobs' numbers."""
    numbers = [content.job_id for content in contents if content.job_id is not None]
    if not numbers:
        return {}
    rows = await session.execute(select(Job.id, Job.public_id).where(is_one_of(Job.id, numbers)))
    return {row.id: row.public_id for row in rows}


async def find_of_job(session: AsyncSession, job_id: int) -> Content | None:
    """The content that a job fetches or transcribes, unless a later one does by now."""
    return await session.scalar(select(Content).where(Content.job_id == job_id))


async def list_contents(session: AsyncSession, project_id: int, *, kind: str | None = None) -> Sequence[Content]:
    """The contents of a project that have their text or rows; what is still fetched or failed is not among them."""
    statement = (
        select(Content).where(Content.project_id == project_id, Content.text_key.is_not(None)).order_by(Content.id)
    )
    if kind is not None:
        statement = statement.where(Content.kind == kind)
    return (await session.scalars(statement)).all()


async def stored_bytes(session: AsyncSession, project_id: int) -> int:
    total = await session.scalar(select(func.sum(Content.size_bytes)).where(Content.project_id == project_id))
    return int(total or 0)


async def character_count(session: AsyncSession, project_id: int, *, content_ids: Sequence[int] | None = None) -> int:
    """Characters of all documents of a project, or of those given, as the server counted them."""
    statement = select(func.sum(Content.character_count)).where(Content.project_id == project_id)
    if content_ids is not None:
        statement = statement.where(is_one_of(Content.id, content_ids))
    return int(await session.scalar(statement) or 0)


async def chunked_characters(
    session: AsyncSession, project_id: int, *, content_ids: Sequence[int] | None = None
) -> int:
    """As `character_count`, of the documents that have been cut: those that a generation reads."""
    has_chunks = select(Chunk.id).where(Chunk.content_id == Content.id).exists()
    statement = select(func.sum(Content.character_count)).where(Content.project_id == project_id, has_chunks)
    if content_ids is not None:
        statement = statement.where(is_one_of(Content.id, content_ids))
    return int(await session.scalar(statement) or 0)


async def list_by_number(session: AsyncSession, project_id: int, numbers: Sequence[int]) -> Sequence[Content]:
    """By the integer ids that the platform face shows, each once. Raises UnknownContent when one is not there."""
    wanted = set(numbers)
    found = await session.scalars(
        select(Content)
        .where(Content.project_id == project_id, is_one_of(Content.id, sorted(wanted)))
        .order_by(Content.id)
    )
    contents = found.all()
    if len(contents) < len(wanted):
        raise UnknownContent()
    return contents


async def list_of_owner(session: AsyncSession, owner: Owner, numbers: Sequence[int]) -> Sequence[Content]:
    """As `list_by_number`, in any of the owner's projects. Raises UnknownContent when one is not there."""
    wanted = set(numbers)
    found = await session.scalars(
        select(Content)
        .join(Project, Project.id == Content.project_id)
        .where(is_one_of(Content.id, sorted(wanted)), Project.user_id == owner.id)
        .order_by(Content.id)
    )
    contents = found.all()
    if len(contents) < len(wanted):
        raise UnknownContent()
    return contents


async def list_documents(session: AsyncSession, project_id: int) -> Sequence[Content]:
    """All documents of a project, those that are still fetched among them; uploads of datasets are none."""
    found = await session.scalars(
        select(Content).where(Content.project_id == project_id, Content.kind == "raw_doc").order_by(Content.id)
    )
    return found.all()


async def without_chunks(session: AsyncSession, content_ids: Sequence[int]) -> Sequence[int]:
    """Those of the contents that have no chunk."""
    chunked = select(Chunk.id).where(Chunk.content_id == Content.id).exists()
    found = await session.scalars(
        select(Content.id).where(is_one_of(Content.id, content_ids), ~chunked).order_by(Content.id)
    )
    return found.all()


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
