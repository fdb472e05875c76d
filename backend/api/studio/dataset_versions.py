"""The dataset's frozen versions, and its examples as a file."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, StringConstraints

from backend.api.errors import error_responses
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedProject
from backend.datasets import exporting, queries, versions
from backend.datasets.errors import NoDataset
from backend.datasets.formats import Format
from backend.datasets.models import DatasetVersion
from backend.training import queries as training_queries

router = APIRouter(prefix="/projects/{project_id}/dataset", tags=["dataset"])

_DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "The examples as a file.", "content": {"application/jsonl": {}, "text/csv": {}}},
}


class VersionIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    note: Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000)] | None = None


class VersionOut(BaseModel):
    id: UUID
    dataset_id: UUID
    number: int
    sha256: str
    train_count: int
    eval_count: int
    note: str | None
    created_at: datetime
    # The runs that were trained on it.
    run_ids: list[UUID]


class VersionListOut(BaseModel):
    versions: list[VersionOut]


@router.post(
    "/versions",
    status_code=201,
    responses={200: {"model": VersionOut, "description": "Nothing has changed since."}, **error_responses(400, 404)},
)
async def freeze_dataset(
    project: OwnedProject, session: SessionDep, response: Response, body: VersionIn | None = None
) -> VersionOut:
    """Freezes the valid train and eval examples; when nothing changed since the last version, that one with 200."""
    dataset = await queries.find_trainable(session, project.id)
    if dataset is None:
        raise NoDataset(project_id=str(project.public_id))
    version, is_new = await versions.freeze(session, dataset.id, note=body.note if body else None)
    if not is_new:
        response.status_code = 200
    runs = await training_queries.runs_by_version(session, project.id)
    return _version_out(version, dataset.public_id, runs)


@router.get("/versions", responses=error_responses(404))
async def list_versions(project: OwnedProject, session: SessionDep) -> VersionListOut:
    """All versions of the project's datasets, newest first. Each dataset counts its own from 1."""
    runs = await training_queries.runs_by_version(session, project.id)
    return VersionListOut(
        versions=[
            _version_out(version, dataset_id, runs)
            for version, dataset_id in await versions.list_versions(session, project.id)
        ]
    )


@router.get("/export", response_class=StreamingResponse, responses={**_DOWNLOAD, **error_responses(400, 404)})
async def export_dataset(
    project: OwnedProject,
    session: SessionDep,
    services: ServicesDep,
    format: Annotated[Format, Query()] = "jsonl",
    split: Annotated[Literal["train", "eval", "all"], Query()] = "all",
    version: Annotated[int | None, Query(ge=1, le=2_000_000_000)] = None,
    dataset_id: Annotated[UUID | None, Query(description="An earlier dataset; default: the current one.")] = None,
    include_invalid: Annotated[bool, Query()] = False,
) -> StreamingResponse:
    """The examples as a download. With a `version`, exactly those that were frozen."""
    if dataset_id is not None:
        dataset = await queries.get_dataset(session, project, dataset_id)
    else:
        current = await queries.find_current(session, project.id)
        if current is None:
            raise NoDataset(project_id=str(project.public_id))
        dataset = current
    if version is not None:
        await versions.get(session, dataset.id, version)
    ending = "csv" if format == "csv" else "jsonl"
    name = f"dataset-{f'v{version}' if version else 'current'}-{split}-{format}.{ending}"
    return StreamingResponse(
        # Its own short transactions: that of the request ends before the first byte leaves.
        exporting.stream(
            services.db.transaction, dataset.id, format, split=split, version=version, include_invalid=include_invalid
        ),
        media_type="text/csv; charset=utf-8" if format == "csv" else "application/jsonl",
        headers={"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"},
    )


def _version_out(version: DatasetVersion, dataset_id: UUID, runs: dict[tuple[int, int], list[UUID]]) -> VersionOut:
    return VersionOut(
        id=version.public_id,
        dataset_id=dataset_id,
        number=version.number,
        sha256=version.sha256,
        train_count=version.train_count,
        eval_count=version.eval_count,
        note=version.note,
        created_at=version.created_at,
        run_ids=runs.get((version.dataset_id, version.number), []),
    )
