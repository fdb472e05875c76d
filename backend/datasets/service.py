"""What people do with datasets: preview, generate, look at the examples, delete some."""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents import queries as content_queries
from backend.datasets import queries
from backend.datasets.errors import DatasetInUse, NoChunks, NoModelForGeneration
from backend.datasets.models import Dataset, Example
from backend.jobs import kinds, queue
from backend.jobs import queries as job_queries
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import JobState
from backend.kit.broker import Broker
from backend.kit.config import Settings
from backend.projects import service as projects
from backend.projects.models import Project
from backend.projects.stages import Stage

PREVIEW_EXAMPLES = 10
DEFAULT_TARGET = 200
DEFAULT_TRAIN_SHARE = 0.9
# The kind of job that reads a dataset; it is defined above this package.
_TRAINING = "training"


@dataclass(slots=True)
class SplitStats:
    """Valid examples of one split; tokens are counted by the base model's tokenizer."""

    count: int = 0
    tokens: int = 0
    min_tokens: int = 0
    max_tokens: int = 0

    @property
    def avg_tokens(self) -> int:
        return round(self.tokens / self.count) if self.count else 0


@dataclass(slots=True)
class DatasetStats:
    """Counts of a dataset's train and eval examples; previews are counted apart."""

    valid: int = 0
    invalid: int = 0
    preview: int = 0
    by_split: dict[str, SplitStats] = field(default_factory=lambda: {"train": SplitStats(), "eval": SplitStats()})
    validation_errors: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.valid + self.invalid

    @property
    def avg_token_count(self) -> int:
        tokens = sum(split.tokens for split in self.by_split.values())
        return round(tokens / self.valid) if self.valid else 0


async def start_preview(
    session: AsyncSession, broker: Broker, settings: Settings, project: Project, *, count: int, model: str | None
) -> Job:
    """Enqueues a few real examples, spread over the documents. Raises NoChunks, JobAlreadyRunning."""
    await _require_input(session, settings, project, model)
    dataset = await queries.find_current(session, project.id) or await _new_dataset(session, project)
    return await queue.enqueue(
        session,
        broker,
        PREVIEW,
        user_id=project.user_id,
        project_id=project.id,
        params={"dataset_id": dataset.id, "target": count, "examples_per_chunk": None, "model": model},
        exclusive_key=f"data:{project.id}",
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
) -> Job:
    """Enqueues the whole dataset. A dataset that already has examples is kept, and a new one becomes current."""
    await _require_input(session, settings, project, model)
    dataset = await queries.find_current(session, project.id)
    if dataset is None or await queries.has_examples(session, dataset):
        dataset = await _new_dataset(session, project)
    job = await queue.enqueue(
        session,
        broker,
        GENERATION,
        user_id=project.user_id,
        project_id=project.id,
        params={
            "dataset_id": dataset.id,
            "target": target
            or (None if examples_per_chunk else project.config.get("num_examples_target", DEFAULT_TARGET)),
            "examples_per_chunk": examples_per_chunk,
            "model": model,
        },
        exclusive_key=f"data:{project.id}",
    )
    dataset.status = "processing"
    await projects.move_to(session, project.id, Stage.GENERATING)
    return job


async def stats(session: AsyncSession, dataset: Dataset | None) -> DatasetStats:
    found = DatasetStats()
    for row in await queries.stats_rows(session, dataset.id) if dataset is not None else []:
        if row.split == "preview":
            found.preview += row.examples
        elif row.is_valid:
            split = found.by_split.setdefault(row.split, SplitStats())
            split.count, split.tokens = row.examples, int(row.tokens)
            split.min_tokens, split.max_tokens = row.least, row.most
            found.valid += row.examples
        else:
            found.invalid += row.examples
            reason = row.invalid_reason or "invalid"
            found.validation_errors[reason] = found.validation_errors.get(reason, 0) + row.examples
    return found


async def delete_example(session: AsyncSession, project: Project, example: Example) -> None:
    """Raises DatasetInUse during training: a run that resumes after a kill must find the examples it began with."""
    if any(job.kind == _TRAINING for job in await job_queries.live_jobs(session, project.id)):
        raise DatasetInUse()
    await session.delete(example)
    await session.flush()


async def _require_input(session: AsyncSession, settings: Settings, project: Project, model: str | None) -> None:
    if not settings.llm_base_url or not (model or settings.llm_model):
        raise NoModelForGeneration()
    if not await content_queries.has_chunks(session, project.id):
        raise NoChunks(project_id=str(project.public_id))


async def _new_dataset(session: AsyncSession, project: Project) -> Dataset:
    dataset = Dataset(project_id=project.id, name=project.name, status="processing")
    session.add(dataset)
    await session.flush()
    return dataset


async def _generation_ended(session: AsyncSession, job: Job) -> None:
    assert job.project_id is not None
    dataset = await session.get(Dataset, int(job.params["dataset_id"]))
    if dataset is not None and job.state != JobState.SUCCESS:
        dataset.status = "error"
        await session.flush()
    await projects.settle_stage(session, job.project_id, failed=job.state == JobState.FAILED)


PREVIEW = kinds.register(JobKind("dataset_preview", "llm"))
GENERATION = kinds.register(JobKind("dataset_generate", "llm", max_attempts=10, ending=_generation_ended))


def split_share(project: Project) -> float:
    """The share of examples to train on: `train_eval_split` of the project's config."""
    return float(project.config.get("train_eval_split", DEFAULT_TRAIN_SHARE))


def summary(found: DatasetStats) -> dict[str, Any]:
    """What a finished generation job shows."""
    return {
        "total_generated": found.total,
        "valid": found.valid,
        "invalid": found.invalid,
        "train": found.by_split["train"].count,
        "eval": found.by_split["eval"].count,
    }
