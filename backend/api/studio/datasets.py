"""The project's dataset: preview, generate, examples, stats."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, StringConstraints

from backend.api.errors import error_responses
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedExample, OwnedProject, WindowDep
from backend.api.studio.schemas import EnqueuedOut, enqueued
from backend.datasets import queries, service
from backend.datasets.models import Example
from backend.datasets.service import DatasetStats

router = APIRouter(prefix="/projects/{project_id}/dataset", tags=["dataset"])

ModelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class PreviewIn(BaseModel):
    num_examples: int = Field(default=service.PREVIEW_EXAMPLES, ge=1, le=50)
    ollama_model: ModelName | None = None


class GenerateIn(BaseModel):
    num_examples_target: int | None = Field(default=None, ge=1, le=100_000)
    examples_per_chunk: int | None = Field(default=None, ge=1, le=50)
    ollama_model: ModelName | None = None


class ExampleOut(BaseModel):
    id: UUID
    split: str
    data: dict[str, Any]
    is_valid: bool
    invalid_reason: str | None
    token_count: int
    metadata: dict[str, Any]
    created_at: datetime


class ExampleStatsOut(BaseModel):
    total: int
    valid: int
    invalid: int
    train: int
    eval: int
    preview: int
    avg_token_count: int


class ExampleListOut(BaseModel):
    items: list[ExampleOut]
    total: int
    stats: ExampleStatsOut


class SplitStatsOut(BaseModel):
    count: int
    avg_tokens: int
    min_tokens: int
    max_tokens: int


class StatsOut(BaseModel):
    total: int
    valid: int
    invalid: int
    by_split: dict[str, SplitStatsOut]
    validation_errors: dict[str, int]


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


@router.post("/generate", status_code=202, responses=error_responses(400, 404, 409, 503))
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
    )
    return enqueued(job, "Dataset generation job enqueued")


@router.get("/examples", responses=error_responses(404))
async def list_examples(
    project: OwnedProject,
    session: SessionDep,
    window: WindowDep,
    split: Annotated[Literal["preview", "train", "eval"] | None, Query()] = None,
    is_valid: Annotated[bool | None, Query()] = None,
) -> ExampleListOut:
    dataset = await queries.find_current(session, project.id)
    found = await service.stats(session, dataset)
    if dataset is None:
        return ExampleListOut(items=[], total=0, stats=example_stats_out(found))
    page = await queries.page_examples(session, dataset, window, split=split, is_valid=is_valid)
    return ExampleListOut(
        items=[example_out(example) for example in page.items], total=page.total, stats=example_stats_out(found)
    )


@router.delete("/examples/{example_id}", status_code=204, responses=error_responses(404, 409))
async def delete_example(example: OwnedExample, project: OwnedProject, session: SessionDep) -> None:
    await service.delete_example(session, project, example)


@router.get("/stats", responses=error_responses(404))
async def get_stats(project: OwnedProject, session: SessionDep) -> StatsOut:
    found = await service.stats(session, await queries.find_current(session, project.id))
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
            )
            for name, split in found.by_split.items()
        },
        validation_errors=found.validation_errors,
    )


def example_out(example: Example) -> ExampleOut:
    return ExampleOut(
        id=example.public_id,
        split=example.split,
        data={"instruction": example.instruction, "input": example.input, "output": example.output},
        is_valid=example.is_valid,
        invalid_reason=example.invalid_reason,
        token_count=example.token_count,
        metadata=example.meta,
        created_at=example.created_at,
    )


def example_stats_out(found: DatasetStats) -> ExampleStatsOut:
    return ExampleStatsOut(
        total=found.total,
        valid=found.valid,
        invalid=found.invalid,
        train=found.by_split["train"].count,
        eval=found.by_split["eval"].count,
        preview=found.preview,
        avg_token_count=found.avg_token_count,
    )
