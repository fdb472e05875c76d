"""SELECTs over the datasets of a project that the caller owns."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets.errors import ExampleNotFound
from backend.datasets.models import ChunkMark, Dataset, Example
from backend.kit.pagination import Page, Window
from backend.projects.models import Project

_STATS = text("""
SELECT split, is_valid, invalid_reason, count(*) AS examples, sum(token_count) AS tokens,
       min(token_count) AS least, max(token_count) AS most
FROM examples WHERE dataset_id = :dataset_id
GROUP BY split, is_valid, invalid_reason
""")


async def find_current(session: AsyncSession, project_id: int) -> Dataset | None:
    """The project's latest dataset that is ready or being made; one whose generation failed is passed over."""
    return await session.scalar(
        select(Dataset)
        .where(Dataset.project_id == project_id, Dataset.status != "error")
        .order_by(Dataset.id.desc())
        .limit(1)
    )


async def find_trainable(session: AsyncSession, project_id: int) -> Dataset | None:
    """The project's latest finished dataset that has training examples."""
    has_training = (
        select(Example.id).where(Example.dataset_id == Dataset.id, Example.split == "train", Example.is_valid).exists()
    )
    return await session.scalar(
        select(Dataset)
        .where(Dataset.project_id == project_id, Dataset.status == "ready", has_training)
        .order_by(Dataset.id.desc())
        .limit(1)
    )


async def has_examples(session: AsyncSession, dataset: Dataset) -> bool:
    """Whether a full generation has begun to write into the dataset; previews do not count."""
    found = await session.scalar(
        select(Example.id).where(Example.dataset_id == dataset.id, Example.split != "preview").limit(1)
    )
    return found is not None


async def get_example(session: AsyncSession, project: Project, public_id: UUID) -> Example:
    example = await session.scalar(
        select(Example)
        .join(Dataset, Dataset.id == Example.dataset_id)
        .where(Dataset.project_id == project.id, Example.public_id == public_id)
    )
    if example is None:
        raise ExampleNotFound()
    return example


async def page_examples(
    session: AsyncSession, dataset: Dataset, window: Window, *, split: str | None, is_valid: bool | None
) -> Page[Example]:
    conditions = [Example.dataset_id == dataset.id]
    if split is not None:
        conditions.append(Example.split == split)
    if is_valid is not None:
        conditions.append(Example.is_valid == is_valid)
    rows = await session.scalars(
        select(Example).where(*conditions).order_by(Example.id).limit(window.limit).offset(window.offset)
    )
    total = await session.scalar(select(func.count()).select_from(Example).where(*conditions))
    return Page(rows.all(), int(total or 0))


async def list_valid(session: AsyncSession, dataset_id: int, split: str) -> Sequence[Example]:
    rows = await session.scalars(
        select(Example)
        .where(Example.dataset_id == dataset_id, Example.split == split, Example.is_valid)
        .order_by(Example.id)
    )
    return rows.all()


async def stats_rows(session: AsyncSession, dataset_id: int) -> Sequence[Row[Any]]:
    return (await session.execute(_STATS, {"dataset_id": dataset_id})).all()


async def marked_chunks(session: AsyncSession, job_id: int) -> set[int]:
    """The chunks whose examples a generation job has committed."""
    return set((await session.scalars(select(ChunkMark.chunk_id).where(ChunkMark.job_id == job_id))).all())


async def known_fingerprints(session: AsyncSession, dataset_id: int, fingerprints: list[str]) -> set[str]:
    rows = await session.scalars(
        select(Example.fingerprint).where(
            Example.dataset_id == dataset_id, Example.split != "preview", Example.fingerprint.in_(fingerprints)
        )
    )
    return set(rows.all())
