"""What people do with training: start it, watch it, cancel it, export it, and question the result."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets import queries as dataset_queries
from backend.datasets import versions
from backend.datasets.errors import NoDataset
from backend.jobs import kinds, queue
from backend.jobs.events import EventLog
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import LIVE, JobState
from backend.kit.broker import Broker
from backend.kit.config import Settings
from backend.projects.models import Project
from backend.providers.base_models import ModelLibrary
from backend.providers.llm.choice import choose
from backend.training import admission, export_formats, fine_tunings, methods, queries
from backend.training.admission import Outlook
from backend.training.answer_judging import JUDGING
from backend.training.errors import (
    FineTuningEnded,
    NoBaseModel,
    NoEvaluation,
    NoJudge,
    NothingToExport,
    NoTrainingRun,
    NoTrainingRunning,
)
from backend.training.export_formats import Format
from backend.training.fine_tunings import Wanted
from backend.training.models import FineTuning
from backend.training.statuses import Status
from backend.users import plans

_STATE_OF = {
    Status.QUEUED: JobState.QUEUED,
    Status.PREPARING: JobState.RUNNING,
    Status.TRAINING: JobState.RUNNING,
    Status.COMPLETED: JobState.SUCCESS,
    Status.CANCELLED: JobState.CANCELLED,
    Status.ERROR: JobState.FAILED,
}


async def start(
    session: AsyncSession,
    broker: Broker,
    library: ModelLibrary,
    project: Project,
    *,
    method: str,
    given: dict[str, Any],
) -> tuple[FineTuning, Job, list[str]]:
    """Enqueues a run on the project's latest dataset as it is now: a version is frozen, which no later edit changes.

    The last of the three is what should be known of the examples. Raises BadHyperparameter, NoBaseModel,
    BaseModelNotTrainable, ModelTooLarge, PlanLimitReached, NoDataset, DoesNotFit, TooFewPreferences,
    TrainingAlreadyRunning.
    """
    values = methods.settings_of(method, given, project)
    if project.base_model_id is None or project.model_info is None:
        raise NoBaseModel(project_id=str(project.public_id))
    await methods.require_base(library, project, project.base_model_id, method)
    await plans.require_room_for_fine_tuning(session, project.user_id)
    await fine_tunings.lock_project(session, project)
    dataset = await dataset_queries.find_trainable(session, project.id)
    if dataset is None:
        raise NoDataset(project_id=str(project.public_id))
    room = (await admission.foresee(session, library, project.base_model_id, method, values, dataset.id)).admitted()
    version, _ = await versions.freeze(session, dataset.id)
    warnings = [*await methods.require_preferences(session, method, version), *room.warnings]
    wanted = Wanted(
        name=f"{project.name} on {project.base_model_id}"[:200],
        description=None,
        provider=fine_tunings.LOCAL,
        model=project.base_model_id,
        method=method,
    )
    kept = {"hyperparameters": values, "memory": room.memory}
    run, job = await fine_tunings.start_local(session, broker, project, version, wanted, **kept)
    return run, job, warnings


async def foresee(
    session: AsyncSession, library: ModelLibrary, project: Project, *, method: str, given: dict[str, Any]
) -> Outlook:
    """The memory that a run started now would take. Raises BadHyperparameter, NoBaseModel; a run that does not fit, or
    has no dataset yet, is no error.
    """
    values = methods.settings_of(method, given, project)
    if project.base_model_id is None:
        raise NoBaseModel(project_id=str(project.public_id))
    dataset = await dataset_queries.find_trainable(session, project.id)
    dataset_id = dataset.id if dataset is not None else None
    return await admission.foresee(session, library, project.base_model_id, method, values, dataset_id)


async def latest_run(session: AsyncSession, project: Project) -> tuple[FineTuning, Job]:
    """The run that `train/status` shows. Raises NoTrainingRun."""
    fine_tuning = await queries.find_latest(session, project.id, has_job=True)
    if fine_tuning is None or fine_tuning.job_id is None:
        raise NoTrainingRun(project_id=str(project.public_id))
    return fine_tuning, await session.get_one(Job, fine_tuning.job_id)


async def cancel(session: AsyncSession, events: EventLog, project: Project) -> tuple[FineTuning, Job]:
    """Cancels the latest run, wherever it trains. Raises NoTrainingRun, NoTrainingRunning."""
    fine_tuning, job = await latest_run(session, project)
    if job_state(fine_tuning, job) not in LIVE:
        raise NoTrainingRunning()
    try:
        fine_tuning = await fine_tunings.cancel(session, events, fine_tuning)
    except FineTuningEnded as error:
        raise NoTrainingRunning() from error
    await session.refresh(job)
    return fine_tuning, job


def job_state(fine_tuning: FineTuning, job: Job) -> str:
    """The state of a run in the words of jobs. The job of a run at a provider is over once it is submitted."""
    if fine_tuning.provider == fine_tunings.LOCAL:
        return job.state
    return _STATE_OF[Status(fine_tuning.status)]


async def start_export(
    session: AsyncSession,
    broker: Broker,
    project: Project,
    formats: Sequence[Format] = ("adapter",),
    fine_tuning: FineTuning | None = None,
) -> Job:
    """Enqueues the export of a completed run, of the latest one unless told. Raises NothingToExport, JobAlreadyRunning.

    Formats whose weights must be computed go to the workers that have the training libraries.
    """
    exported = fine_tuning or await _completed(session, project)
    if exported.status != Status.COMPLETED or exported.provider != fine_tunings.LOCAL:
        raise NothingToExport(project_id=str(project.public_id))
    return await queue.enqueue(
        session,
        broker,
        MODEL_EXPORTING if export_formats.needs_models(formats) else EXPORTING,
        user_id=project.user_id,
        project_id=project.id,
        params={"fine_tuning_id": exported.id, "formats": export_formats.in_order(formats)},
        exclusive_key=f"export:{project.id}",
    )


async def start_judging(
    session: AsyncSession, broker: Broker, settings: Settings, project: Project, fine_tuning: FineTuning | None = None
) -> Job:
    """Enqueues a judgement of the answers that a run's evaluation gave. Raises NoEvaluation, NoJudge."""
    judged = fine_tuning or await _completed(session, project)
    if not judged.metrics.get("evaluation", {}).get("answers"):
        raise NoEvaluation()
    if not settings.llm_judge_model or choose(settings, settings.llm_judge_model) is None:
        raise NoJudge()
    return await queue.enqueue(
        session,
        broker,
        JUDGING,
        user_id=project.user_id,
        project_id=project.id,
        params={"fine_tuning_id": judged.id},
        exclusive_key=f"judging:{project.id}",
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
    fine_tuning = await queries.find_latest(session, project.id, status=Status.COMPLETED, provider=fine_tunings.LOCAL)
    if fine_tuning is None:
        raise NothingToExport(project_id=str(project.public_id))
    return fine_tuning


EXPORTING = kinds.register(JobKind("export", "default"))
MODEL_EXPORTING = kinds.register(JobKind("model_export", "gpu"))
COMPARISON = kinds.register(JobKind("model_compare", "gpu"))
