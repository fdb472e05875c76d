"""What people do with datasets: make a preview, generate the whole, make one of chosen contents, delete it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import charging, ledger
from backend.contents import queries as content_queries
from backend.contents.models import Content
from backend.datasets import carrying, queries, reading
from backend.datasets.errors import (
    ContentNotADocument,
    ContentNotReady,
    DatasetInUse,
    NoChunks,
    NoModelForGeneration,
    UnknownDataset,
)
from backend.datasets.models import Dataset
from backend.datasets.strategies.choice import check_task, strategy_for
from backend.datasets.strategies.judge import DEFAULT_THRESHOLD
from backend.jobs import kinds, queue
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import JobState
from backend.kit.broker import Broker
from backend.kit.config import Settings
from backend.projects import service as projects
from backend.projects.models import Project
from backend.projects.stages import Stage
from backend.providers.llm.choice import ModelChoice, choose, choose_judge
from backend.users import provider_keys

PREVIEW_EXAMPLES = 10
DEFAULT_TARGET = 200
DEFAULT_TRAIN_SHARE = 0.9
_PENDING = ("pending", "processing")


async def start_preview(
    session: AsyncSession, broker: Broker, settings: Settings, project: Project, *, count: int, model: str | None
) -> Job:
    """Enqueues a few real examples, spread over the documents.

    Raises NoModelForGeneration, NoProviderKey, TaskNotSupportedByModel, NoChunks, JobAlreadyRunning.
    """
    await _require_input(session, settings, project, model)
    dataset = await queries.find_current(session, project.id) or await _new_dataset(session, project)
    return await queue.enqueue(
        session,
        broker,
        PREVIEW,
        user_id=project.user_id,
        project_id=project.id,
        params={"dataset_id": dataset.id, "target": count, "examples_per_chunk": None, "model": model},
        exclusive_key=key_of(project),
    )


async def start_generation(
    session: AsyncSession,
    broker: Broker,
    settings: Settings,
    project: Project,
    *,
    target: int | None,
    examples_per_chunk: int | None,
    model: str | None,
    only_changed: bool = False,
    judge: bool = False,
    judge_threshold: float = DEFAULT_THRESHOLD,
    judge_model: str | None = None,
) -> Job:
    """Enqueues the whole dataset. One that already has examples is kept, and a new one becomes current.

    What people brought into the old one is taken along. With `only_changed` the current dataset is kept instead, and
    only the chunks that came since it was made are asked. `judge_threshold` goes from 1 to 5. The characters that are
    read are held until the job ends.
    Raises NoModelForGeneration, NoProviderKey, TaskNotSupportedByModel, NoChunks, JobAlreadyRunning,
    InsufficientCharacters.
    """
    writer = await _require_input(session, settings, project, model)
    if judge:
        await _require_key(session, project, choose_judge(settings, writer, judge_model))
    dataset = current = await queries.find_current(session, project.id)
    has_examples = dataset is not None and await queries.has_examples(session, dataset)
    only_changed = only_changed and has_examples
    if dataset is None or (has_examples and not only_changed):
        dataset = await _new_dataset(session, project)
    if target is None and not examples_per_chunk and not only_changed:
        target = project.config.get("num_examples_target") or DEFAULT_TARGET
    job = await queue.enqueue(
        session,
        broker,
        GENERATION,
        user_id=project.user_id,
        project_id=project.id,
        params={
            "dataset_id": dataset.id,
            "target": target,
            "examples_per_chunk": examples_per_chunk,
            "model": model,
            "only_changed": only_changed,
            "carry_from": current.id if current is not None and current is not dataset else None,
            "judge": judge,
            "judge_threshold": judge_threshold,
            "judge_model": judge_model,
        },
        exclusive_key=key_of(project),
    )
    dataset.status = "processing"
    await projects.move_to(session, project.id, Stage.GENERATING)
    if only_changed:
        characters = await reading.of_changes(session, dataset, job_id=job.id)
    else:
        characters = await content_queries.chunked_characters(session, project.id)
    await _reserve(session, settings, job, dataset, characters)
    return job


async def create_from_contents(
    session: AsyncSession,
    broker: Broker,
    settings: Settings,
    project: Project,
    contents: Sequence[Content],
    *,
    name: str,
    description: str | None,
    model: str,
    target: int | None = None,
    writer: str | None = None,
    hold_id: int | None = None,
    planned: Dataset | None = None,
    holds: bool = True,
) -> tuple[Dataset, Job | None]:
    """A dataset of exactly these documents of the project, and the first job that fills it.

    `planned` is one that was made before, without a job, and is filled now. Without `holds`, the caller holds the
    characters itself, and gives the job's params the hold.

    Contents whose text is still being fetched or transcribed are waited for, by a job that looks again every minute
    at the latest; those without chunks are cut first. Each step is a job: `dataset_prepare` where there is something
    to wait for or to cut, then `dataset_generate`. Without contents the dataset is empty and ready at once, for pairs
    written by hand. `model` is the base model that it is made for, `writer` the one that writes it (default:
    LLM_MODEL). The documents' characters are held until the last job ends, those of contents without text as soon as
    they are known. `hold_id` names an order's hold for them, about which the order decides when the dataset is not
    made. Raises ContentNotReady, ContentNotADocument, NoModelForGeneration, NoProviderKey,
    TaskNotSupportedByModel, JobAlreadyRunning, InsufficientCharacters.
    """
    require_documents(contents)
    dataset = planned or Dataset(
        project_id=project.id,
        name=name,
        description=description,
        model=model,
        status="processing" if contents else "ready",
    )
    dataset.report = {}
    session.add(dataset)
    await session.flush()
    if not contents:
        return dataset, None
    await require_model(session, settings, project, writer)
    ids = [content.id for content in contents]
    is_pending = any(content.status in _PENDING for content in contents)
    needs_work = is_pending or await content_queries.without_chunks(session, ids)
    job = await queue.enqueue(
        session,
        broker,
        PREPARING if needs_work else GENERATION,
        user_id=project.user_id,
        project_id=project.id,
        params={
            "dataset_id": dataset.id,
            "content_ids": ids,
            "target": target or project.config.get("num_examples_target") or DEFAULT_TARGET,
            "examples_per_chunk": None,
            "model": writer,
            "keeps_model": True,
            "hold_id": hold_id,
        },
        exclusive_key=key_of(project),
    )
    await projects.move_to(session, project.id, Stage.CHUNKING if needs_work else Stage.GENERATING)
    if hold_id is None and holds:
        await _reserve(session, settings, job, dataset, sum(content.character_count for content in contents))
    return dataset, job


async def change(session: AsyncSession, dataset: Dataset, changes: dict[str, Any]) -> Dataset:
    """Sets name and description. Raises UnknownDataset when it went meanwhile."""
    row = await queries.lock(session, dataset.id)
    if row is None:
        raise UnknownDataset()
    for field, value in changes.items():
        setattr(row, field, value)
    await session.flush()
    await session.refresh(row)
    return row


async def delete(
    session: AsyncSession, dataset: Dataset, runs_of: Callable[[AsyncSession, int], Awaitable[Sequence[int]]]
) -> None:
    """Deletes a dataset with its pairs and versions. `runs_of` gives the numbers of the fine-tunings that name it.

    While there is one, ended or not, its frozen version must stay readable, so the deletion is refused; so it is while
    a job fills the dataset. Raises DatasetInUse, UnknownDataset.
    """
    row = await session.scalar(
        select(Dataset).where(Dataset.id == dataset.id).with_for_update().execution_options(populate_existing=True)
    )
    if row is None:
        raise UnknownDataset()
    # A training that starts now waits for the lock, and finds no dataset.
    if runs := await runs_of(session, row.id):
        named = ", ".join(str(run) for run in runs)
        raise DatasetInUse(reason=f"fine-tunings were trained on it: {named}. Delete them first.", fine_tunings=runs)
    if (job := await queries.find_making(session, row)) is not None:
        raise DatasetInUse(
            reason=f"it is being made by job {job.public_id}. Cancel it with POST /jobs/{job.public_id}/cancel first.",
            job_id=str(job.public_id),
        )
    await session.delete(row)
    await session.flush()
    await projects.settle_stage(session, row.project_id)


def key_of(project: Project) -> str:
    """One job at a time makes or fills the project's datasets."""
    return f"data:{project.id}"


def require_documents(contents: Sequence[Content]) -> None:
    """Raises ContentNotADocument, ContentNotReady; those that are still being read may get their text."""
    uploads = [content.id for content in contents if content.kind != "raw_doc"]
    if uploads:
        raise ContentNotADocument(content_ids=uploads)
    failed = [
        content.id
        for content in contents
        if content.status == "error" or (content.status not in _PENDING and content.text_key is None)
    ]
    if failed:
        raise ContentNotReady(content_ids=failed)


async def _require_input(session: AsyncSession, settings: Settings, project: Project, name: str | None) -> ModelChoice:
    model = await require_model(session, settings, project, name)
    if not await content_queries.has_chunks(session, project.id):
        raise NoChunks(project_id=str(project.public_id))
    return model


async def require_model(session: AsyncSession, settings: Settings, project: Project, name: str | None) -> ModelChoice:
    """The model that will write. Raises NoModelForGeneration, NoProviderKey, TaskNotSupportedByModel."""
    model = await _require_key(session, project, choose(settings, name))
    check_task(project.task_type, project.config.get("labels") or (), strategy_for(model.model, settings.llm_strategy))
    return model


async def _require_key(session: AsyncSession, project: Project, model: ModelChoice | None) -> ModelChoice:
    """The user's key is missed here, not when the job runs."""
    if model is None:
        raise NoModelForGeneration()
    if model.own_key:
        await provider_keys.require(session, project.user_id, model.provider)
    return model


async def _new_dataset(session: AsyncSession, project: Project) -> Dataset:
    dataset = Dataset(project_id=project.id, name=project.name, status="processing")
    session.add(dataset)
    await session.flush()
    return dataset


async def _reserve(session: AsyncSession, settings: Settings, job: Job, dataset: Dataset, characters: int) -> None:
    """Holds what the job will read. The last thing in its transaction: the account's row is locked after all others.

    Nothing has left yet: where the characters are missing, the job is undone with everything else.
    """
    held = await charging.reserve(
        session,
        settings,
        user_id=job.user_id,
        characters=characters,
        reference=f"job:{job.public_id}",
        purpose=charging.GENERATION,
        job_id=job.id,
        params={"dataset": str(dataset.public_id)},
    )
    if held is not None:
        job.params = {**job.params, "hold_id": held.id}
        await session.flush()


async def _generation_ended(session: AsyncSession, job: Job) -> None:
    assert job.project_id is not None
    dataset = await queries.lock(session, int(job.params["dataset_id"]))
    if dataset is not None and job.state != JobState.SUCCESS:
        if job.params.get("only_changed"):
            # It was ready before, and what was added since is whole: every example stands for itself.
            dataset.status = "ready"
            await session.flush()
        else:
            dataset.status = "error"
            await carrying.rescue(session, dataset)
    await projects.settle_stage(session, job.project_id, failed=job.state == JobState.FAILED)
    hold_id = job.params.get("hold_id")
    characters = await _read(session, job, dataset)
    if not characters and job.state != JobState.SUCCESS:
        await charging.release_of_job(session, hold_id)
        return
    await charging.charge(
        session,
        user_id=job.user_id,
        hold_id=hold_id,
        characters=characters,
        reference=f"job:{job.public_id}",
        # No words of the user: ledger rows outlive the account. The name is looked up where a row is shown.
        params={} if dataset is None else {"dataset": str(dataset.public_id)},
    )


async def _read(session: AsyncSession, job: Job, dataset: Dataset | None) -> int:
    """The characters to be paid. What fails or is cancelled costs nothing, but for what a cancel leaves in a dataset
    that is ready."""
    if job.state == JobState.SUCCESS:
        return int((job.result or {}).get(queries.CHARACTERS, 0))
    if job.state == JobState.CANCELLED and dataset is not None and job.params.get("only_changed"):
        return await reading.until_cancelled(session, dataset, job)
    return 0


async def _prepared(session: AsyncSession, job: Job) -> None:
    """The next step of the chain, in the transaction that ends this one; the sweeper sends its message."""
    assert job.project_id is not None
    dataset = await queries.lock(session, int(job.params["dataset_id"]))
    if dataset is not None and job.state == JobState.SUCCESS:
        following = Job(
            user_id=job.user_id,
            project_id=job.project_id,
            kind=GENERATION.name,
            queue=GENERATION.queue,
            params=job.params,
            exclusive_key=job.exclusive_key,
            max_attempts=GENERATION.max_attempts,
        )
        session.add(following)
        await session.flush()
        await projects.move_to(session, job.project_id, Stage.GENERATING)
        if job.params.get("hold_id") is not None:
            await ledger.hand_on(session, job.params["hold_id"], following.id)
        return
    if dataset is not None:
        dataset.status = "error"
        await carrying.rescue(session, dataset)
    await projects.settle_stage(session, job.project_id, failed=job.state == JobState.FAILED)
    await charging.release_of_job(session, job.params.get("hold_id"))


PREVIEW = kinds.register(JobKind("dataset_preview", "llm"))
GENERATION = kinds.register(JobKind(queries.GENERATION, "llm", max_attempts=10, ending=_generation_ended))
# Enough attempts to wait some four hours for a long video to be transcribed.
PREPARING = kinds.register(JobKind(queries.PREPARING, "default", max_attempts=240, ending=_prepared))


def split_share(project: Project) -> float:
    """The share of examples to train on: `train_eval_split` of the project's config."""
    return float(project.config.get("train_eval_split", DEFAULT_TRAIN_SHARE))
