"""The project's dataset: preview, generate, stats."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, StringConstraints

from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedProject
from backend.api.studio.schemas import EnqueuedOut, enqueued
from backend.datasets import queries, service, stats
from backend.datasets.strategies.judge import DEFAULT_THRESHOLD, HIGHEST, LOWEST

router = APIRouter(prefix="/projects/{project_id}/dataset", tags=["dataset"], route_class=IdempotentRoute)

ModelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class PreviewIn(BaseModel):
    num_examples: int = Field(default=service.PREVIEW_EXAMPLES, ge=1, le=50)
    ollama_model: ModelName | None = None


class GenerateIn(BaseModel):
    num_examples_target: int | None = Field(default=None, ge=1, le=100_000)
    # A cap for each chunk; without a target, the count that each chunk is asked for.
    examples_per_chunk: int | None = Field(default=None, ge=1, le=50)
    ollama_model: ModelName | None = None
    # Keeps the current dataset and asks only the chunks that came since it was made.
    only_changed: bool = False
    # A second reading, by LLM_JUDGE_MODEL if there is one and no other is named; what it scores below the threshold
    # (1 to 5) is not valid.
    judge: bool = False
    judge_model: ModelName | None = None
    judge_threshold: float = Field(default=DEFAULT_THRESHOLD, ge=LOWEST, le=HIGHEST)


class SplitStatsOut(BaseModel):
    count: int
    avg_tokens: int
    min_tokens: int
    max_tokens: int
    # Those with a rejected answer, whose tokens are not among the others.
    preferences: int


class StatsOut(BaseModel):
    total: int
    valid: int
    invalid: int
    by_split: dict[str, SplitStatsOut]
    validation_errors: dict[str, int]
    # What the last generation found: how alike train and eval are, and all else that it has to say. None before it.
    leakage: dict[str, Any] | None
    report: dict[str, Any] | None


@router.post("/preview", status_code=202, responses=error_responses(400, 404, 409, 503))
async def preview_dataset(
    project: OwnedProject, session: SessionDep, services: ServicesDep, body: PreviewIn | None = None
) -> EnqueuedOut:
    wanted = body or PreviewIn()
    job = await service.start_preview(
        session,
        services.broker,
        services.settings,
        project,
        count=wanted.num_examples,
        model=wanted.ollama_model,
    )
    return enqueued(job, "Dataset preview job enqueued")


@router.post("/generate", status_code=202, responses=error_responses(400, 402, 404, 409, 503))
async def generate_dataset(
    project: OwnedProject, session: SessionDep, services: ServicesDep, body: GenerateIn | None = None
) -> EnqueuedOut:
    wanted = body or GenerateIn()
    job = await service.start_generation(
        session,
        services.broker,
        services.settings,
        project,
        target=wanted.num_examples_target,
        examples_per_chunk=wanted.examples_per_chunk,
        model=wanted.ollama_model,
        only_changed=wanted.only_changed,
        judge=wanted.judge,
        judge_threshold=wanted.judge_threshold,
        judge_model=wanted.judge_model,
    )
    return enqueued(job, "Dataset generation job enqueued")


@router.get("/stats", responses=error_responses(404))
async def get_stats(project: OwnedProject, session: SessionDep) -> StatsOut:
    dataset = await queries.find_current(session, project.id)
    found = await stats.of(session, dataset)
    report = dataset.report if dataset else {}
    return StatsOut(
        total=found.total,
        valid=found.valid,
        invalid=found.invalid,
        by_split={
            name: SplitStatsOut(
                count=split.count,
                avg_tokens=split.avg_tokens,
                min_tokens=split.min_tokens,
                max_tokens=split.max_tokens,
                preferences=split.preferences,
            )
            for name, split in found.by_split.items()
        },
        validation_errors=found.validation_errors,
        leakage=report.get("leakage"),
        report=report or None,
    )
