"""Datasets of the platform face: made of chosen contents, listed, renamed, exported, deleted."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, StringConstraints, field_validator
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.auth import ClaimsDep, OwnerDep, authenticate
from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.language import ReaderLanguage, told
from backend.api.platform.deps import LARGEST_ID, OwnedDataset, RowId, RowIdQuery, WindowDep, count_all
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.contents import queries as content_queries
from backend.datasets import exporting, queries, service, stats, versions
from backend.datasets.errors import ExportShape
from backend.datasets.formats import Format
from backend.datasets.models import Dataset
from backend.datasets.provider_formats import ProviderName, TrainingFile
from backend.datasets.stats import DatasetStats
from backend.jobs.models import Job
from backend.jobs.states import LIVE
from backend.kit.language import Language
from backend.projects import queries as project_queries
from backend.training import queries as training_queries

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=IdempotentRoute)

_MEDIA = {
    "jsonl": ("jsonl", "application/jsonl"),
    "csv": ("csv", "text/csv; charset=utf-8"),
    "parquet": ("parquet", "application/vnd.apache.parquet"),
}
_DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "The pairs as a file.", "content": {kind.split(";")[0]: {} for _, kind in _MEDIA.values()}},
}
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Description = Annotated[str, StringConstraints(max_length=10_000)]
RowNumber = Annotated[int, Field(ge=1, le=LARGEST_ID)]


class DatasetIn(BaseModel):
    project_id: RowNumber
    name: Name
    description: Description | None = None
    model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)] = Field(
        description="The base model that the dataset is made for"
    )
    writer: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)] | None = Field(
        default=None,
        description="The model that writes the examples: LLM_MODEL by default, or provider/model with your own key",
    )
    content_ids: list[RowNumber] = Field(
        default=[], max_length=1000, description="None: an empty dataset, ready for pairs that are written by hand"
    )


class DatasetChange(BaseModel):
    """What is left out stays as it is."""

    name: Name | None = None
    description: Description | None = None

    @field_validator("name")
    @classmethod
    def _not_null(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("leave the field out to keep it; it cannot be null")
        return value


class DatasetOut(BaseModel):
    id: int
    project_id: int
    name: str
    description: str | None
    model: str | None
    status: Literal["processing", "ready", "error"]
    pairs_count: int
    character_count: int
    size: int = Field(description="Bytes of the pairs' texts")
    preferences_count: int = Field(description="Pairs with a rejected answer")
    created_at: datetime
    updated_at: datetime


class DatasetDetailOut(DatasetOut):
    task_id: UUID | None = Field(description="The job that makes it now")
    error_code: str | None
    error_message: str | None = Field(description="Why it could not be made")


@router.get("", responses=error_responses(401, 404))
async def list_datasets(
    owner: OwnerDep,
    session: SessionDep,
    window: WindowDep,
    response: Response,
    project_id: RowIdQuery = None,
) -> list[DatasetOut]:
    """The caller's datasets, newest first."""
    if project_id is not None:
        await project_queries.get_by_number(session, owner, project_id)
    page = await queries.page_by_number(session, owner, window, project_id=project_id)
    count_all(response, page.total)
    counted = await stats.of_many(session, page.items)
    return [DatasetOut(**dataset_fields(dataset, counted[dataset.id])) for dataset in page.items]


@router.post("", status_code=201, responses=error_responses(400, 401, 402, 404, 409, 503))
async def create_dataset(
    body: DatasetIn, owner: OwnerDep, session: SessionDep, services: ServicesDep, reader: ReaderLanguage
) -> DatasetDetailOut:
    """Makes a dataset of exactly these contents, by jobs; contents that are still being read are waited for."""
    project = await project_queries.get_by_number(session, owner, body.project_id)
    contents = await content_queries.list_by_number(session, project.id, body.content_ids)
    dataset, _ = await service.create_from_contents(
        session,
        services.broker,
        services.settings,
        project,
        contents,
        name=body.name,
        description=body.description,
        model=body.model,
        writer=body.writer,
    )
    await session.refresh(dataset)
    return await _detail(session, dataset, reader)


@router.get("/{dataset_id}", responses=error_responses(401, 404))
async def get_dataset(dataset: OwnedDataset, session: SessionDep, reader: ReaderLanguage) -> DatasetDetailOut:
    return await _detail(session, dataset, reader)


@router.put("/{dataset_id}", responses=error_responses(401, 404))
async def change_dataset(
    body: DatasetChange, dataset: OwnedDataset, session: SessionDep, reader: ReaderLanguage
) -> DatasetDetailOut:
    changed = await service.change(session, dataset, body.model_dump(exclude_unset=True))
    return await _detail(session, changed, reader)


@router.delete("/{dataset_id}", status_code=204, responses=error_responses(401, 404, 409))
async def delete_dataset(dataset: OwnedDataset, session: SessionDep) -> None:
    """Not while a fine-tuning names it, ended or not, nor while it is being made: 409 DATASET_IN_USE."""
    await service.delete(session, dataset, training_queries.numbers_of_dataset)


@router.get(
    "/{dataset_id}/export", response_class=StreamingResponse, responses={**_DOWNLOAD, **error_responses(400, 401, 404)}
)
async def export_dataset(
    dataset_id: RowId,
    claims: ClaimsDep,
    services: ServicesDep,
    format: Annotated[Literal[Format, "parquet"] | None, Query(description="Default: jsonl")] = None,
    provider: Annotated[
        ProviderName | None, Query(description="The training file as this provider takes it, its limits checked first")
    ] = None,
    model: Annotated[str | None, Query(max_length=300, description="The base model at the provider")] = None,
    split: Annotated[Literal["train", "eval", "all"], Query()] = "all",
    version: Annotated[int | None, Query(ge=1, le=2_000_000_000)] = None,
) -> StreamingResponse:
    """The valid examples as a download. With a `version`, exactly those that were frozen.

    JSON lines are a provider's: those of the one that is named, within its limits, else those of OpenAI.
    """
    if (format not in (None, "jsonl") and provider is not None) or (model is not None and provider is None):
        raise ExportShape()
    # A short transaction of its own: none is open while the file is written.
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        dataset = await queries.get_by_number(session, owner, dataset_id)
        if version is not None:
            await versions.get(session, dataset.id, version)
    what: dict[str, Any] = {"split": split, "version": version}
    if provider is not None:
        shaped = TrainingFile(provider, model, is_training=split != "eval")
        parts = await exporting.training_file(services.db.transaction, dataset.id, shaped, **what)
    elif format == "parquet":
        parts = await exporting.parquet_file(services.db.transaction, dataset.id, **what)
    else:
        # Nobody asked whether openai, the contract's default, would take it: only the lines are as it takes them.
        lines: Format = "messages" if format in (None, "jsonl") else format
        parts = exporting.stream(services.db.transaction, dataset.id, lines, **what)
    kind = provider or format or "jsonl"
    ending, media_type = _MEDIA.get(kind, _MEDIA["jsonl"])
    name = f"dataset-{dataset.id}-{f'v{version}' if version else 'current'}-{split}-{kind}.{ending}"
    return StreamingResponse(
        parts,
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"},
    )


def dataset_fields(dataset: Dataset, found: DatasetStats) -> dict[str, Any]:
    """The fields of DatasetOut. Only valid examples are pairs; previews are not."""
    return {
        "id": dataset.id,
        "project_id": dataset.project_id,
        "name": dataset.name,
        "description": dataset.description,
        "model": dataset.model,
        "status": dataset.status,
        "pairs_count": found.valid,
        "character_count": found.character_count,
        "size": found.size_bytes,
        "preferences_count": found.preferences,
        "created_at": dataset.created_at,
        "updated_at": dataset.updated_at,
    }


async def _detail(session: AsyncSession, dataset: Dataset, reader: Language) -> DatasetDetailOut:
    job: Job | None = None
    if dataset.status != "ready":
        job = await queries.find_last_making(session, dataset)
    is_live = job is not None and job.state in LIVE
    has_failed = job is not None and dataset.status == "error"
    return DatasetDetailOut(
        **dataset_fields(dataset, await stats.of(session, dataset)),
        task_id=job.public_id if job is not None and is_live else None,
        error_code=job.error_code if job is not None and has_failed else None,
        error_message=told(reader, job.error_code, job.error_message, job.error_context)
        if job is not None and has_failed
        else None,
    )
