"""SELECTs over the fine-tunings of a project that the caller owns."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs.models import Job
from backend.jobs.states import LIVE
from backend.training.errors import ExportNotFound
from backend.training.models import Artifact, FineTuning, HardwareReport

ADAPTER = "adapter"
EXPORT = "export"


async def find_latest(session: AsyncSession, project_id: int, *, status: str | None = None) -> FineTuning | None:
    statement = select(FineTuning).where(FineTuning.project_id == project_id)
    if status is not None:
        statement = statement.where(FineTuning.status == status)
    return await session.scalar(statement.order_by(FineTuning.id.desc()).limit(1))


async def live_folder_names(session: AsyncSession) -> set[str]:
    """The worker folders of all owners' runs and comparisons that have not ended."""
    runs = await session.scalars(
        select(FineTuning.public_id).where(FineTuning.status.in_(("queued", "preparing", "training")))
    )
    comparisons = await session.scalars(select(Job.public_id).where(Job.kind == "model_compare", Job.state.in_(LIVE)))
    return {str(public_id) for public_id in runs.all()} | {f"compare-{public_id}" for public_id in comparisons.all()}


async def stored_keys(session: AsyncSession) -> set[str]:
    """The storage keys that artifacts of all owners name."""
    return set((await session.scalars(select(Artifact.file_key))).all())


async def find_by_job(session: AsyncSession, job_id: int) -> FineTuning | None:
    return await session.scalar(select(FineTuning).where(FineTuning.job_id == job_id))


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


async def get_export(session: AsyncSession, project_id: int, filename: str) -> Artifact:
    for artifact in await list_exports(session, project_id):
        if artifact.filename == filename:
            return artifact
    raise ExportNotFound(filename)


async def hardware_reports(session: AsyncSession) -> Sequence[HardwareReport]:
    """What the gpu workers said of themselves, the latest first."""
    return (await session.scalars(select(HardwareReport).order_by(HardwareReport.reported_at.desc()))).all()
