"""What people do with training: start it, watch it, cancel it, export it, and question the result."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets import queries as dataset_queries
from backend.datasets.errors import NoDataset
from backend.jobs import kinds, queue
from backend.jobs import service as jobs
from backend.jobs.errors import JobAlreadyEnded, JobAlreadyRunning
from backend.jobs.events import EventLog
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import LIVE, JobState
from backend.kit.broker import Broker
from backend.projects import service as projects
from backend.projects.models import Project
from backend.projects.stages import Stage
from backend.training import hyperparams, queries
from backend.training.errors import (
    BaseModelNotTrainable,
    NoBaseModel,
    NothingToExport,
    NoTrainingRun,
    NoTrainingRunning,
    TrainingAlreadyRunning,
)
from backend.training.models import FineTuning

# What a fine-tuning's status becomes when its job ends.
_STATUS_OF: dict[str, str] = {
    JobState.SUCCESS: "completed",
    JobState.FAILED: "error",
    JobState.CANCELLED: "cancelled",
}


async def start(
    session: AsyncSession, broker: Broker, project: Project, *, method: str, given: dict[str, Any]
) -> tuple[FineTuning, Job]:
    """Enqueues a run on the project's latest dataset.

    Raises BadHyperparameter, NoBaseModel, BaseModelNotTrainable, NoDataset, TrainingAlreadyRunning.
    """
    values = hyperparams.complete(given, max_seq_length=project.config.get("max_seq_length"))
    if project.base_model_id is None or project.model_info is None:
        raise NoBaseModel(project_id=str(project.public_id))
    if not project.model_info.get("valid", True):
        reasons = " ".join(project.model_info.get("warnings", []))
        raise BaseModelNotTrainable(model_id=project.base_model_id, reasons=reasons)
    dataset = await dataset_queries.find_trainable(session, project.id)
    if dataset is None:
        raise NoDataset(project_id=str(project.public_id))
    fine_tuning = FineTuning(
        project_id=project.id,
        dataset_id=dataset.id,
        name=f"{project.name} on {project.base_model_id}"[:200],
        provider="local",
        method=method,
        model=project.base_model_id,
        hyperparameters=values,
    )
    session.add(fine_tuning)
    await session.flush()
    try:
        job = await queue.enqueue(
            session,
            broker,
            TRAINING,
            user_id=project.user_id,
            project_id=project.id,
            params={"fine_tuning_id": fine_tuning.id},
            exclusive_key=f"training:{project.id}",
        )
    except JobAlreadyRunning as error:
        raise TrainingAlreadyRunning(project_id=str(project.public_id)) from error
    fine_tuning.job_id = job.id
    await projects.move_to(session, project.id, Stage.TRAINING)
    await session.flush()
    return fine_tuning, job


async def latest_run(session: AsyncSession, project: Project) -> tuple[FineTuning, Job]:
    """The run that `train/status` shows. Raises NoTrainingRun."""
    fine_tuning = await queries.find_latest(session, project.id)
    if fine_tuning is None or fine_tuning.job_id is None:
        raise NoTrainingRun(project_id=str(project.public_id))
    return fine_tuning, await session.get_one(Job, fine_tuning.job_id)


async def cancel(session: AsyncSession, events: EventLog, project: Project) -> Job:
    """Raises NoTrainingRun, NoTrainingRunning."""
    _, job = await latest_run(session, project)
    if job.state not in LIVE:
        raise NoTrainingRunning()
    try:
        return await jobs.cancel(session, events, job)
    except JobAlreadyEnded as error:
        raise NoTrainingRunning() from error


async def start_export(session: AsyncSession, broker: Broker, project: Project) -> Job:
    """Enqueues the export of the latest completed run. Raises NothingToExport, JobAlreadyRunning."""
    fine_tuning = await _completed(session, project)
    return await queue.enqueue(
        session,
        broker,
        EXPORTING,
        user_id=project.user_id,
        project_id=project.id,
        params={"fine_tuning_id": fine_tuning.id},
        exclusive_key=f"export:{project.id}",
    )


async def start_comparison(
    session: AsyncSession, broker: Broker, project: Project, *, questions: Sequence[str], max_new_tokens: int
) -> Job:
    """Enqueues the same questions to the base and the tuned model. Raises NothingToExport, JobAlreadyRunning."""
    fine_tuning = await _completed(session, project)
    return await queue.enqueue(
        session,
        broker,
        COMPARISON,
        user_id=project.user_id,
        project_id=project.id,
        params={
            "fine_tuning_id": fine_tuning.id,
            "questions": list(questions),
            "max_new_tokens": max_new_tokens,
        },
        exclusive_key=f"compare:{project.id}",
    )


async def _completed(session: AsyncSession, project: Project) -> FineTuning:
    fine_tuning = await queries.find_latest(session, project.id, status="completed")
    if fine_tuning is None:
        raise NothingToExport(project_id=str(project.public_id))
    return fine_tuning


async def _training_ended(session: AsyncSession, job: Job) -> None:
    assert job.project_id is not None
    fine_tuning = await queries.find_by_job(session, job.id)
    if fine_tuning is not None:
        fine_tuning.status = _STATUS_OF[job.state]
        fine_tuning.error_message = job.error_message
        fine_tuning.completed_at = func.clock_timestamp()
        fine_tuning.progress = 100.0 if job.state == JobState.SUCCESS else fine_tuning.progress
        await session.flush()
    await projects.settle_stage(session, job.project_id, failed=job.state == JobState.FAILED)


TRAINING = kinds.register(JobKind("training", "gpu", max_attempts=10, ending=_training_ended))
EXPORTING = kinds.register(JobKind("export", "default"))
COMPARISON = kinds.register(JobKind("model_compare", "gpu"))
