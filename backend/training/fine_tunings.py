"""Fine-tunings on this machine's workers or at a provider: made, made again, changed, cancelled and deleted."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets import queries as dataset_queries
from backend.datasets import versions
from backend.datasets.models import Dataset, DatasetVersion
from backend.jobs import kinds, queue
from backend.jobs import service as jobs
from backend.jobs.errors import JobAlreadyEnded, JobAlreadyRunning
from backend.jobs.events import EventLog
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import LIVE, JobState
from backend.kit.broker import Broker
from backend.kit.db import after_commit
from backend.kit.errors import DomainError
from backend.kit.owner import Owner
from backend.projects import service as projects
from backend.projects.errors import ProjectNotFound
from backend.projects.models import Project
from backend.projects.stages import Stage
from backend.providers import catalogue
from backend.providers.base_models import ModelLibrary
from backend.providers.tuning import hyperparameters as hosted_hyperparameters
from backend.storage import Storage
from backend.training import admission, freezing, hyperparams, methods, queries, statuses
from backend.training.admission import Outlook
from backend.training.errors import (
    FineTuningEnded,
    FineTuningStillEnding,
    TrainingAlreadyRunning,
)
from backend.training.freezing import Checked
from backend.training.models import FineTuning
from backend.training.statuses import Status
from backend.users import plans, provider_keys

LOCAL = "local"
# What is looked at by the poller until the provider has said how it ended.
UNSURE = "unsure"
SENT = "sent"
_STATUS_OF: dict[str, Status] = {
    JobState.SUCCESS: Status.COMPLETED,
    JobState.FAILED: Status.ERROR,
    JobState.CANCELLED: Status.CANCELLED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody asks for. `method` matters for local runs only; `hyperparameters` have the public names."""

    name: str
    description: str | None
    provider: str
    model: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    method: str = "qlora"


async def create(
    session: AsyncSession, broker: Broker, library: ModelLibrary, owner: Owner, dataset_id: int, wanted: Wanted
) -> tuple[FineTuning, list[str]]:
    """Starts a run on the dataset as it is now, and returns it with what should be known of the base model.

    Raises DatasetNotFound, DatasetNotReady, DatasetTooSmall, UnknownProvider, ProviderHasNoFineTuning,
    ModelNotTrainable, BadHyperparameter, ModelTooLarge, DoesNotFit, TooFewPreferences, NoProviderKey,
    PlanLimitReached, TrainingAlreadyRunning.
    """
    dataset, project = await queries.get_dataset(session, owner, dataset_id)
    checked = await check(session, library, project, wanted, dataset.id)
    await plans.require_room_for_fine_tuning(session, owner.id)
    await lock_project(session, project)
    version = await freezing.freeze(session, dataset.id, checked)
    return await _start(session, broker, project, version, wanted, checked)


async def foresee(
    session: AsyncSession, library: ModelLibrary, owner: Owner, dataset_id: int, model: str, method: str, given: Any
) -> Outlook:
    """The memory that a local run on a dataset would take. Raises DatasetNotFound, BadHyperparameter."""
    dataset, project = await queries.get_dataset(session, owner, dataset_id)
    values = methods.settings_of(method, given, project)
    return await admission.foresee(session, library, model, method, values, dataset.id)


async def retrain(
    session: AsyncSession,
    broker: Broker,
    library: ModelLibrary,
    earlier: FineTuning,
    *,
    provider: str | None = None,
    model: str | None = None,
    hyperparameters: dict[str, Any] | None = None,
    name: str | None = None,
    method: str | None = None,
) -> tuple[FineTuning, list[str]]:
    """Another run on the very examples of an earlier one. What is not given is as it was then.

    Hyperparameters are kept only with the provider, because each has its own. Raises as `create`.
    """
    method = method or (earlier.method if earlier.provider == LOCAL else "qlora")
    if hyperparameters is None:
        same = provider is None or provider == earlier.provider
        hyperparameters = hyperparams.carried(earlier.hyperparameters, earlier.method, method) if same else {}
    wanted = Wanted(
        name=name or earlier.name,
        description=earlier.description,
        provider=provider or earlier.provider,
        model=model or earlier.model,
        hyperparameters=hyperparameters,
        method=method,
    )
    project = await session.get_one(Project, earlier.project_id)
    checked = await check(session, library, project, wanted, earlier.dataset_id)
    await plans.require_room_for_fine_tuning(session, project.user_id)
    await lock_project(session, project)
    if earlier.dataset_version is None:
        # It was never trained, or is of a time when datasets had no versions: its examples are those of now.
        version = await freezing.freeze(session, earlier.dataset_id, checked)
    else:
        version = await versions.get(session, earlier.dataset_id, earlier.dataset_version)
    inherited = {"retrained_from_id": earlier.id, "system_prompt": earlier.system_prompt}
    return await _start(session, broker, project, version, wanted, checked, **inherited)


async def start_local(
    session: AsyncSession, broker: Broker, project: Project, version: DatasetVersion, wanted: Wanted, **fields: Any
) -> tuple[FineTuning, Job]:
    """Enqueues a training on this machine's workers, one at a time for each project. Raises TrainingAlreadyRunning."""
    fine_tuning = await _insert(session, project, version, wanted, method=wanted.method, **fields)
    return fine_tuning, await enqueue(session, broker, project, fine_tuning)


async def enqueue(session: AsyncSession, broker: Broker, project: Project, fine_tuning: FineTuning) -> Job:
    """Gives a run with a version its job: the training here, or the submission. Raises TrainingAlreadyRunning."""
    is_local = fine_tuning.provider == LOCAL
    plan = await plans.limits_of(session, project.user_id)
    try:
        job = await queue.enqueue(
            session,
            broker,
            TRAINING if is_local else SUBMISSION,
            user_id=project.user_id,
            project_id=project.id,
            params={"fine_tuning_id": fine_tuning.id},
            exclusive_key=f"training:{project.id}" if is_local else f"submission:{fine_tuning.id}",
            weight=plan.weight,
            max_concurrent=plan.max_running_trainings if is_local else None,
        )
    except JobAlreadyRunning as error:
        raise TrainingAlreadyRunning(project_id=str(project.public_id)) from error
    fine_tuning.job_id = job.id
    await projects.move_to(session, fine_tuning.project_id, Stage.TRAINING)
    await session.flush()
    await session.refresh(fine_tuning)
    return job


async def lock_project(session: AsyncSession, project: Project) -> None:
    """Before the dataset is locked: a deletion of the project locks both in this order. Raises ProjectNotFound."""
    locked = select(Project.id).where(Project.id == project.id).with_for_update(key_share=True)
    if await session.scalar(locked) is None:
        raise ProjectNotFound()


async def change(session: AsyncSession, fine_tuning: FineTuning, changes: dict[str, Any]) -> FineTuning:
    """Sets name and description."""
    for name, value in changes.items():
        setattr(fine_tuning, name, value)
    await session.flush()
    await session.refresh(fine_tuning)
    return fine_tuning


async def cancel(
    session: AsyncSession, events: EventLog, fine_tuning: FineTuning, reason: str | None = None
) -> FineTuning:
    """Asks worker or provider to stop; the run has the last word, and one that completes first stays completed.

    A second cancel is no error. Raises FineTuningEnded.
    """
    if fine_tuning.job_id is None and (planned := await _cancel_planned(session, events, fine_tuning, reason)):
        return planned
    # The job first: whoever ends it locks it and then the run.
    job = None if fine_tuning.job_id is None else await session.get(Job, fine_tuning.job_id)
    if job is not None and job.state in LIVE:
        with suppress(JobAlreadyEnded):
            await jobs.cancel(session, events, job)
    run = await session.get(FineTuning, fine_tuning.id, populate_existing=True, with_for_update=True)
    if run is None:
        raise FineTuningEnded(state="deleted")
    if run.status == Status.CANCELLED and run.cancel_requested_at is not None:
        run.error_message = reason or run.error_message
        await session.flush()
        await session.refresh(run)
        return run
    if run.status in statuses.ENDED:
        raise FineTuningEnded(state=run.status)
    run.cancel_requested_at = run.cancel_requested_at or datetime.now(UTC)
    run.error_message = reason or run.error_message
    # One that is being asked right now sees the wish when it writes down the answer.
    if run.external_id is not None and not run.provider_state.get("polling"):
        run.next_poll_at = datetime.now(UTC)
    await session.flush()
    await session.refresh(run)
    return run


async def _cancel_planned(
    session: AsyncSession, events: EventLog, fine_tuning: FineTuning, reason: str | None
) -> FineTuning | None:
    """Ends a run that waits for its dataset, and the job that makes it; None for one that has begun meanwhile."""
    dataset = await session.get(Dataset, fine_tuning.dataset_id)
    making = await dataset_queries.find_making(session, dataset) if dataset is not None else None
    run = await session.scalar(
        select(FineTuning)
        .where(FineTuning.id == fine_tuning.id, queries.IS_PLANNED)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    if run is None:
        await session.refresh(fine_tuning)
        return None
    run.cancel_requested_at = datetime.now(UTC)
    end(run, Status.CANCELLED, reason)
    await session.flush()
    if making is not None:
        with suppress(JobAlreadyEnded):
            await jobs.cancel(session, events, making)
    await session.refresh(run)
    return run


async def delete(session: AsyncSession, storage: Storage, events: EventLog, fine_tuning: FineTuning) -> None:
    """Deletes an ended run with its files; its model at a provider stays there. Raises FineTuningStillEnding."""
    run = await session.get(FineTuning, fine_tuning.id, populate_existing=True, with_for_update=True)
    if run is None:
        return
    if run.status not in statuses.ENDED or run.next_poll_at is not None:
        raise FineTuningStillEnding()
    keys = await queries.stored_keys(session, run.id)
    public_id, project_id = run.public_id, run.project_id
    await session.delete(run)
    await session.flush()
    await projects.settle_stage(session, project_id)

    async def sweep() -> None:
        await storage.delete(sorted(keys))
        await events.delete(public_id)

    after_commit(session, sweep)


def end(
    run: FineTuning,
    status: Status,
    message: str | None,
    code: str | None = None,
    context: Mapping[str, Any] | None = None,
) -> None:
    """Writes down how a run ended. A reason that its owner gave for the cancel stays; a completed run has none."""
    assert run.status not in statuses.ENDED, f"{run.status} is an end"
    run.status = status
    if status is not Status.CANCELLED or run.error_message is None:
        run.error_message, run.error_code = message, code
        run.error_context = dict(context) if context else None
    run.completed_at = datetime.now(UTC)
    run.next_poll_at = None
    if status is Status.COMPLETED:
        run.progress = 100.0


def fail(run: FineTuning, error: DomainError) -> None:
    """Ends a run with what went wrong."""
    end(run, Status.ERROR, error.detail, error.code, error.context)


def today() -> date:
    """The day by which the catalogue says what can be trained."""
    return datetime.now(UTC).date()


async def check(
    session: AsyncSession, library: ModelLibrary, project: Project, wanted: Wanted, dataset_id: int | None = None
) -> Checked:
    """Everything that can be refused before a row is locked. Nothing outside is asked.

    Raises UnknownProvider, ProviderHasNoFineTuning, ModelNotTrainable, BadHyperparameter, NoProviderKey, ModelTooLarge,
    DoesNotFit.
    """
    base = catalogue.require_trainable(wanted.provider, wanted.model, today())
    if wanted.provider == LOCAL:
        values = methods.settings_of(wanted.method, wanted.hyperparameters, project)
        await methods.require_base(library, project, wanted.model, wanted.method)
        outlook = await admission.foresee(session, library, wanted.model, wanted.method, values, dataset_id)
        room = outlook.admitted()
        return Checked(replace(base, warnings=[*base.warnings, *room.warnings]), values, room.memory)
    values = hosted_hyperparameters.checked(wanted.provider, wanted.hyperparameters)
    await provider_keys.require(session, project.user_id, wanted.provider)
    return Checked(base, values)


async def _start(
    session: AsyncSession,
    broker: Broker,
    project: Project,
    version: DatasetVersion,
    wanted: Wanted,
    checked: Checked,
    **fields: Any,
) -> tuple[FineTuning, list[str]]:
    """The run, and what should be known of its base and its examples."""
    freezing.require_size(checked, version)
    warnings, fields["hyperparameters"] = [*checked.base.warnings], checked.hyperparameters
    if wanted.provider == LOCAL:
        fields["memory"] = checked.memory
        warnings += await methods.require_preferences(session, wanted.method, version)
        return (await start_local(session, broker, project, version, wanted, **fields))[0], warnings
    fine_tuning = await _insert(session, project, version, wanted, method="supervised", **fields)
    await enqueue(session, broker, project, fine_tuning)
    return fine_tuning, warnings


async def _insert(
    session: AsyncSession, project: Project, version: DatasetVersion, wanted: Wanted, *, method: str, **fields: Any
) -> FineTuning:
    fine_tuning = FineTuning(
        project_id=project.id,
        dataset_id=version.dataset_id,
        dataset_version=version.number,
        name=wanted.name,
        description=wanted.description,
        provider=wanted.provider,
        model=wanted.model,
        method=method,
        **fields,
    )
    session.add(fine_tuning)
    await session.flush()
    return fine_tuning


async def _training_ended(session: AsyncSession, job: Job) -> None:
    assert job.project_id is not None
    run = await queries.find_by_job(session, job.id, lock=True)
    if run is not None and run.status not in statuses.ENDED:
        status = _STATUS_OF[job.state]
        if status is Status.CANCELLED:
            run.cancel_requested_at = run.cancel_requested_at or datetime.now(UTC)
        end(run, status, job.error_message, job.error_code, job.error_context)
        await session.flush()
    await projects.settle_stage(session, job.project_id, failed=job.state == JobState.FAILED)


async def _submission_ended(session: AsyncSession, job: Job) -> None:
    """Where a job may have been accepted unseen, only the provider can say what became of it: it is asked."""
    assert job.project_id is not None
    run = await queries.find_by_job(session, job.id, lock=True)
    if run is None or run.status in statuses.ENDED or job.state == JobState.SUCCESS:
        return
    if job.state == JobState.CANCELLED:
        run.cancel_requested_at = run.cancel_requested_at or datetime.now(UTC)
    if run.external_id is not None or run.provider_state.get(SENT):
        run.provider_state = {**run.provider_state, UNSURE: job.error_message or ""}
        await session.flush()
        await session.execute(
            update(FineTuning).where(FineTuning.id == run.id).values(next_poll_at=func.clock_timestamp())
        )
        return
    end(run, _STATUS_OF[job.state], job.error_message, job.error_code, job.error_context)
    await session.flush()
    await projects.settle_stage(session, job.project_id, failed=job.state == JobState.FAILED)


TRAINING = kinds.register(JobKind("training", "gpu", max_attempts=10, ending=_training_ended))
SUBMISSION = kinds.register(JobKind("remote_submit", "default", max_attempts=8, ending=_submission_ended))
