"""The dataset's examples: list, look, correct, mark, restore, delete."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.ratings import RatingIn
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedExample, OwnedProject, WindowDep
from backend.datasets import editing, preferences, queries, stats
from backend.datasets.errors import NoDataset
from backend.datasets.models import Example
from backend.datasets.stats import DatasetStats
from backend.kit.pagination import Window

router = APIRouter(prefix="/projects/{project_id}/dataset/examples", tags=["dataset"])
rating = APIRouter(prefix="/projects/{project_id}/dataset/preferences", tags=["dataset"], route_class=IdempotentRoute)

_Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=100_000)]
_FilledText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100_000)]
_Source = Literal["generated", "imported", "manual"]


class ExampleOut(BaseModel):
    id: UUID
    split: str
    data: dict[str, Any]
    # The turns before the instruction, as [{role, content}].
    history: list[dict[str, str]] | None
    is_valid: bool
    invalid_reason: str | None
    source: str
    is_edited: bool
    edited_at: datetime | None
    token_count: int
    # An edited text is not counted by the tokenizer; its tokens are estimated from those of the original.
    token_count_is_estimate: bool
    # The first version of the dataset that holds it as it is.
    version: int
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime


class ExampleDetailOut(ExampleOut):
    # What it was before the first edit.
    original: dict[str, Any] | None


class ExampleStatsOut(BaseModel):
    total: int
    valid: int
    invalid: int
    train: int
    eval: int
    preview: int
    avg_token_count: int
    # Valid ones of train and eval that have a rejected answer.
    preferences: int


class ExampleListOut(BaseModel):
    items: list[ExampleOut]
    total: int
    stats: ExampleStatsOut


class ExampleDataPatch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    instruction: _FilledText | None = None
    input: _Text | None = None
    output: _FilledText | None = None
    # An answer that is worse than `output`; null takes it away.
    rejected: _FilledText | None = None


class ExamplePatch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: ExampleDataPatch | None = None
    is_valid: bool | None = None
    split: Literal["train", "eval"] | None = None


class ExamplesPatch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ids: list[UUID] = Field(min_length=1, max_length=1000)
    is_valid: bool


class MarkedOut(BaseModel):
    updated: int
    # Those that stay invalid, because a valid example of the dataset says the same.
    duplicates: list[UUID]


@router.get("", responses=error_responses(404))
async def list_examples(
    project: OwnedProject,
    session: SessionDep,
    window: WindowDep,
    split: Annotated[Literal["preview", "train", "eval"] | None, Query()] = None,
    is_valid: Annotated[bool | None, Query()] = None,
    source: Annotated[_Source | None, Query()] = None,
    invalid_reason: Annotated[str | None, Query(max_length=60)] = None,
) -> ExampleListOut:
    dataset = await queries.find_current(session, project.id)
    found = await stats.of(session, dataset)
    if dataset is None:
        return ExampleListOut(items=[], total=0, stats=example_stats_out(found))
    wanted: dict[str, Any] = {"split": split, "is_valid": is_valid, "source": source, "invalid_reason": invalid_reason}
    from_id = 0
    if not any(value is not None for value in wanted.values()):
        from_id, offset = stats.start_of(found, window.offset)
        window = Window(window.limit, offset)
    page = await queries.page_examples(session, dataset, window, **wanted, from_id=from_id)
    return ExampleListOut(
        items=[ExampleOut(**_fields(example)) for example in page],
        total=found.count(**wanted),
        stats=example_stats_out(found),
    )


@router.patch("", responses=error_responses(404))
async def mark_examples(body: ExamplesPatch, project: OwnedProject, session: SessionDep) -> MarkedOut:
    marked = await editing.mark(session, project, body.ids, is_valid=body.is_valid)
    return MarkedOut(updated=marked.updated, duplicates=marked.duplicates)


@router.get("/{example_id}", responses=error_responses(404))
async def get_example(example: OwnedExample) -> ExampleDetailOut:
    return example_out(example)


@router.patch("/{example_id}", responses=error_responses(400, 404))
async def change_example(body: ExamplePatch, example: OwnedExample, session: SessionDep) -> ExampleDetailOut:
    texts: dict[str, str | None] = {}
    if body.data is not None:
        texts |= body.data.model_dump(exclude_none=True)
        if "rejected" in body.data.model_fields_set:
            texts["rejected"] = body.data.rejected
    return example_out(await editing.change(session, example, texts=texts, is_valid=body.is_valid, split=body.split))


@router.post("/{example_id}/restore", responses=error_responses(404))
async def restore_example(example: OwnedExample, session: SessionDep) -> ExampleDetailOut:
    return example_out(await editing.restore(session, example))


@router.delete("/{example_id}", status_code=204, responses=error_responses(404))
async def delete_example(example: OwnedExample, session: SessionDep) -> None:
    await editing.delete(session, example)


@rating.post(
    "",
    status_code=201,
    responses={
        200: {"model": ExampleDetailOut, "description": "It is known already."},
        **error_responses(400, 404, 409),
    },
)
async def rate_answers(
    body: RatingIn, project: OwnedProject, session: SessionDep, response: Response
) -> ExampleDetailOut:
    """Of two answers to one question one is better: the example that holds both, new or not. The last word counts."""
    dataset = await queries.find_current(session, project.id)
    if dataset is None:
        raise NoDataset(project_id=str(project.public_id))
    example, is_new = await preferences.rate(session, dataset, body.as_rating())
    if not is_new:
        response.status_code = 200
    return example_out(example)


def example_out(example: Example) -> ExampleDetailOut:
    return ExampleDetailOut(**_fields(example), original=example.original)


def example_stats_out(found: DatasetStats) -> ExampleStatsOut:
    return ExampleStatsOut(
        total=found.total,
        valid=found.valid,
        invalid=found.invalid,
        train=found.by_split["train"].count,
        eval=found.by_split["eval"].count,
        preview=found.preview,
        avg_token_count=found.avg_token_count,
        preferences=found.preferences,
    )


def _data(example: Example) -> dict[str, Any]:
    """The texts; `rejected`, an answer that is worse than the output, only where there is one."""
    found = {"instruction": example.instruction, "input": example.input, "output": example.output}
    return found if example.rejected is None else {**found, "rejected": example.rejected}


def _fields(example: Example) -> dict[str, Any]:
    return {
        "id": example.public_id,
        "split": example.split,
        "data": _data(example),
        "history": example.history,
        "is_valid": example.is_valid,
        "invalid_reason": example.invalid_reason,
        "source": example.source,
        "is_edited": example.edited_at is not None,
        "edited_at": example.edited_at,
        "token_count": example.token_count,
        "token_count_is_estimate": editing.has_other_text(example),
        "version": example.from_version,
        "metadata": example.meta,
        "created_at": example.created_at,
        "updated_at": example.updated_at,
    }
