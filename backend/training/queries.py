"""SELECTs over the fine-tunings of a project that the caller owns."""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets import queries as dataset_queries
from backend.datasets import versions
from backend.datasets.models import Dataset
from backend.datasets.versions import VersionName
from backend.jobs.models import Job
from backend.jobs.states import LIVE
from backend.kit.owner import Owner
from backend.kit.pagination import Page, Window
from backend.projects import queries as project_queries
from backend.projects.models import Project
from backend.training import statuses
from backend.training.errors import ExportNotFound, FineTuningNotFound
from backend.training.models import Artifact, FineTuning, HardwareReport

ADAPTER = "adapter"
EXPORT = "export"
# A run that waits for its dataset: neither version nor job yet.
IS_PLANNED = (
    FineTuning.dataset_version.is_(None) & FineTuning.job_id.is_(None) & (FineTuning.status == statuses.Status.QUEUED)
)


async def find_latest(
    session: AsyncSession,
    project_id: int,
    *,
    status: str | None = None,
    provider: str | None = None,
    has_job: bool = False,
) -> FineTuning | None:
    """`has_job` leaves out those that wait for their dataset, or were cancelled while they did."""
    statement = select(FineTuning).where(FineTuning.project_id == project_id)
    if has_job:
        statement = statement.where(FineTuning.job_id.is_not(None))
    if status is not None:
        statement = statement.where(FineTuning.status == status)
    if provider is not None:
        statement = statement.where(FineTuning.provider == provider)
    return await session.scalar(statement.order_by(FineTuning.id.desc()).limit(1))


async def get_by_number(session: AsyncSession, owner: Owner, number: int) -> FineTuning:
    """By the integer id that the platform face shows. Raises FineTuningNotFound."""
    statement = select(FineTuning).join(Project, Project.id == FineTuning.project_id)
    run = await session.scalar(statement.where(FineTuning.id == number, Project.user_id == owner.id))
    if run is None:
        raise FineTuningNotFound()
    return run


async def get_by_public_id(session: AsyncSession, owner: Owner, public_id: UUID) -> FineTuning:
    """By the UUID under which it is asked as a model. Raises FineTuningNotFound."""
    statement = select(FineTuning).join(Project, Project.id == FineTuning.project_id)
    run = await session.scalar(statement.where(FineTuning.public_id == public_id, Project.user_id == owner.id))
    if run is None:
        raise FineTuningNotFound()
    return run


async def list_finished(session: AsyncSession, owner: Owner, *, limit: int = 1000) -> Sequence[FineTuning]:
    """The owner's fine-tunings that have a model, newest first."""
    statement = select(FineTuning).join(Project, Project.id == FineTuning.project_id)
    finished = FineTuning.status == statuses.Status.COMPLETED
    rows = await session.scalars(
        statement.where(Project.user_id == owner.id, finished).order_by(FineTuning.id.desc()).limit(limit)
    )
    return rows.all()


async def page_by_number(
    session: AsyncSession, owner: Owner, window: Window, *, dataset_id: int | None = None, project_id: int | None = None
) -> Page[FineTuning]:
    """The owner's fine-tunings, newest first. Raises DatasetNotFound, ProjectNotFound for those of others."""
    of_owner = FineTuning.project_id.in_(select(Project.id).where(Project.user_id == owner.id))
    conditions: list[ColumnElement[bool]] = [of_owner]
    if dataset_id is not None:
        dataset, _ = await get_dataset(session, owner, dataset_id)
        conditions.append(FineTuning.dataset_id == dataset.id)
    if project_id is not None:
        project = await project_queries.get_by_number(session, owner, project_id)
        conditions.append(FineTuning.project_id == project.id)
    rows = await session.scalars(
        select(FineTuning).where(*conditions).order_by(FineTuning.id.desc()).limit(window.limit).offset(window.offset)
    )
    total = await session.scalar(select(func.count()).select_from(FineTuning).where(*conditions))
    return Page(rows.all(), int(total or 0))


async def get_dataset(session: AsyncSession, owner: Owner, number: int) -> tuple[Dataset, Project]:
    """A dataset by its integer id, with its project. Raises DatasetNotFound."""
    dataset = await dataset_queries.get_by_number(session, owner, number)
    return dataset, await session.get_one(Project, dataset.project_id)


async def live_folder_names(session: AsyncSession) -> set[str]:
    """The worker folders of all owners' runs, comparisons, questions and exports that have not ended."""
    runs = await session.scalars(select(FineTuning.public_id).where(FineTuning.status.in_(statuses.LIVE)))
    asking = Job.kind.in_(("model_compare", "playground"))
    comparisons = await session.scalars(select(Job.public_id).where(asking, Job.state.in_(LIVE)))
    exporting = Job.kind.in_(("export", "model_export", "hub_push"))
    exports = await session.scalars(select(Job.public_id).where(exporting, Job.state.in_(LIVE)))
    return (
        {str(public_id) for public_id in runs.all()}
        | {f"compare-{public_id}" for public_id in comparisons.all()}
        | {f"export-{public_id}" for public_id in exports.all()}
    )


async def stored_keys(session: AsyncSession, fine_tuning_id: int | None = None) -> set[str]:
    """The storage keys that the artifacts of one run, or of all owners, name."""
    statement = select(Artifact.file_key)
    if fine_tuning_id is not None:
        statement = statement.where(Artifact.fine_tuning_id == fine_tuning_id)
    return set((await session.scalars(statement)).all())


async def find_by_job(session: AsyncSession, job_id: int, *, lock: bool = False) -> FineTuning | None:
    """The run of a job; with `lock` read anew, and held until the transaction ends."""
    statement = select(FineTuning).where(FineTuning.job_id == job_id)
    if lock:
        statement = statement.with_for_update(key_share=True).execution_options(populate_existing=True)
    return await session.scalar(statement)


async def version_of(session: AsyncSession, fine_tuning: FineTuning) -> VersionName | None:
    """The frozen examples of a run; None for one of a time when there were no versions."""
    if fine_tuning.dataset_version is None:
        return None
    version = await versions.get(session, fine_tuning.dataset_id, fine_tuning.dataset_version)
    return await versions.name_of(session, version)


async def runs_by_version(session: AsyncSession, project_id: int) -> dict[tuple[int, int], list[UUID]]:
    """The project's runs by (dataset's id, version's number), oldest first."""
    rows = await session.execute(
        select(FineTuning.dataset_id, FineTuning.dataset_version, FineTuning.public_id)
        .where(FineTuning.project_id == project_id)
        .order_by(FineTuning.id)
    )
    runs: dict[tuple[int, int], list[UUID]] = defaultdict(list)
    for dataset_id, number, public_id in rows:
        if number is not None:
            runs[dataset_id, number].append(public_id)
    return runs


async def numbers_of_dataset(session: AsyncSession, dataset_id: int) -> Sequence[int]:
    """The fine-tunings, ended ones too, that name a dataset."""
    found = await session.scalars(
        select(FineTuning.id).where(FineTuning.dataset_id == dataset_id).order_by(FineTuning.id)
    )
    return found.all()


async def list_artifacts(session: AsyncSession, fine_tuning_id: int, role: str) -> Sequence[Artifact]:
    rows = await session.scalars(
        select(Artifact).where(Artifact.fine_tuning_id == fine_tuning_id, Artifact.role == role).order_by(Artifact.id)
    )
    return rows.all()


async def list_exports(session: AsyncSession, project_id: int) -> Sequence[Artifact]:
    """The files of the project's latest export; none when there is no export."""
    latest = (
        select(FineTuning.id)
        .join(Artifact, Artifact.fine_tuning_id == FineTuning.id)
        .where(FineTuning.project_id == project_id, Artifact.role == EXPORT)
        .order_by(FineTuning.id.desc())
        .limit(1)
    )
    rows = await session.scalars(
        select(Artifact)
        .where(Artifact.fine_tuning_id == latest.scalar_subquery(), Artifact.role == EXPORT)
        .order_by(Artifact.id)
    )
    return rows.all()


async def get_export_of(session: AsyncSession, fine_tuning: FineTuning, filename: str) -> Artifact:
    """A file of one run's export. Raises ExportNotFound."""
    for artifact in await list_artifacts(session, fine_tuning.id, EXPORT):
        if artifact.filename == filename:
            return artifact
    raise ExportNotFound(filename)


async def get_export(session: AsyncSession, project_id: int, filename: str) -> Artifact:
    for artifact in await list_exports(session, project_id):
        if artifact.filename == filename:
            return artifact
    raise ExportNotFound(filename)


async def hardware_reports(session: AsyncSession) -> Sequence[HardwareReport]:
    """What the gpu workers said of themselves, the latest first."""
    return (await session.scalars(select(HardwareReport).order_by(HardwareReport.reported_at.desc()))).all()
