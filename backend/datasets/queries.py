"""SELECTs over the datasets of a project that the caller owns."""

from collections.abc import Collection, Sequence
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets.errors import DatasetNotFound, ExampleNotFound, UnknownDataset
from backend.datasets.models import Dataset, Example
from backend.jobs import queries as job_queries
from backend.jobs.models import Job
from backend.kit.owner import Owner
from backend.kit.pagination import Page, Window
from backend.projects.models import Project

# The kinds of jobs that fill a dataset; they are defined in a module that reads this one.
PREPARING, GENERATION = "dataset_prepare", "dataset_generate"
# Why an example is not valid whose chunk is gone or has another text now.
SOURCE_CHANGED = "source_changed"
# In the report of a dataset that has no job yet; nobody else fills it meanwhile.
PLANNED = "planned"
# In a generation's result: the characters that were processed.
CHARACTERS = "characters_processed"


async def lock(session: AsyncSession, dataset_id: int) -> Dataset | None:
    """The dataset's row, read anew and locked: whoever writes examples takes it first, so that locks have one order.

    Writers of one dataset take turns, and a freeze waits for them; what only refers to the dataset does not wait.
    None when the dataset is gone.
    """
    return await session.scalar(
        select(Dataset)
        .where(Dataset.id == dataset_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )


async def find_making(session: AsyncSession, dataset: Dataset) -> Job | None:
    """The live job that fills the dataset, if there is one."""
    for job in await job_queries.live_jobs(session, dataset.project_id):
        if job.kind in (PREPARING, GENERATION) and job.params.get("dataset_id") == dataset.id:
            return job
    return None


async def find_last_making(session: AsyncSession, dataset: Dataset) -> Job | None:
    """The last job that filled the dataset, whatever became of it."""
    return await session.scalar(
        select(Job)
        .where(Job.project_id == dataset.project_id, Job.kind.in_((PREPARING, GENERATION)))
        .where(Job.params["dataset_id"].as_integer() == dataset.id)
        .order_by(Job.id.desc())
        .limit(1)
    )


async def get_by_number(session: AsyncSession, owner: Owner, number: int) -> Dataset:
    """By the integer id that the platform face shows. Raises UnknownDataset."""
    dataset = await session.scalar(
        select(Dataset)
        .join(Project, Project.id == Dataset.project_id)
        .where(Dataset.id == number, Project.user_id == owner.id)
    )
    if dataset is None:
        raise UnknownDataset()
    return dataset


async def names_of(session: AsyncSession, owner: Owner, public_ids: Collection[UUID]) -> dict[UUID, tuple[int, str]]:
    """Number and name of those of the owner's datasets that are still there, by their public id."""
    if not public_ids:
        return {}
    rows = await session.execute(
        select(Dataset.id, Dataset.name, Dataset.public_id)
        .join(Project, Project.id == Dataset.project_id)
        .where(Dataset.public_id.in_(public_ids), Project.user_id == owner.id)
    )
    return {public_id: (number, name) for number, name, public_id in rows}


async def page_by_number(
    session: AsyncSession, owner: Owner, window: Window, *, project_id: int | None = None
) -> Page[Dataset]:
    """The owner's datasets, newest first; of one project, which the caller knows to be the owner's."""
    conditions = [Project.user_id == owner.id]
    if project_id is not None:
        conditions.append(Dataset.project_id == project_id)
    joined = select(Dataset).join(Project, Project.id == Dataset.project_id).where(*conditions)
    rows = await session.scalars(joined.order_by(Dataset.id.desc()).limit(window.limit).offset(window.offset))
    counted = select(func.count(Dataset.id)).join(Project, Project.id == Dataset.project_id).where(*conditions)
    return Page(rows.all(), int(await session.scalar(counted) or 0))


async def find_current(session: AsyncSession, project_id: int) -> Dataset | None:
    """The project's latest dataset that is ready or being made; passed over are those whose generation failed, and
    those whose turn has not come."""
    return await session.scalar(
        select(Dataset)
        .where(Dataset.project_id == project_id, Dataset.status != "error", ~Dataset.report.has_key(PLANNED))
        .order_by(Dataset.id.desc())
        .limit(1)
    )


async def get_dataset(session: AsyncSession, project: Project, public_id: UUID) -> Dataset:
    """Raises DatasetNotFound."""
    dataset = await session.scalar(
        select(Dataset).where(Dataset.project_id == project.id, Dataset.public_id == public_id)
    )
    if dataset is None:
        raise DatasetNotFound()
    return dataset


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
    session: AsyncSession,
    dataset: Dataset,
    window: Window,
    *,
    split: str | None = None,
    is_valid: bool | None = None,
    source: str | None = None,
    invalid_reason: str | None = None,
    from_id: int = 0,
) -> Sequence[Example]:
    """Examples in the order in which they were made; how many there are is in the dataset's statistics.

    What lies before the window is passed over in the index alone; `from_id` may say where to begin (stats.start_of).
    """
    wanted = {"split": split, "is_valid": is_valid, "source": source, "invalid_reason": invalid_reason}
    conditions = [getattr(Example, name) == value for name, value in wanted.items() if value is not None]
    ids = (
        select(Example.id)
        .where(Example.dataset_id == dataset.id, Example.id >= from_id, *conditions)
        .order_by(Example.id)
        .limit(window.limit)
        .offset(window.offset)
    )
    rows = await session.scalars(select(Example).where(Example.id.in_(ids)).order_by(Example.id))
    return rows.all()


async def known_fingerprints(session: AsyncSession, dataset_id: int, fingerprints: list[str]) -> set[str]:
    """Those of them that the dataset has, refused examples included; what only lost its source may come again."""
    rows = await session.scalars(
        select(Example.fingerprint).where(
            Example.dataset_id == dataset_id,
            Example.split != "preview",
            Example.fingerprint.in_(fingerprints),
            Example.invalid_reason.is_distinct_from(SOURCE_CHANGED),
        )
    )
    return set(rows.all())
