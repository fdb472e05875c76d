"""Exports: make, list, download."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, StringConstraints

from backend.api.auth import ClaimsDep, Credentials, authenticate
from backend.api.downloads import DOWNLOAD_DOCS, IfRangeHeader, RangeHeader, download
from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.services import Services, ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedProject
from backend.api.studio.schemas import EnqueuedOut, enqueued
from backend.projects import queries as project_queries
from backend.training import pushing, queries, service
from backend.training.errors import ExportNotFound
from backend.training.export_formats import Format
from backend.training.exports import ARCHIVE
from backend.training.models import Artifact, FineTuning
from backend.training.pushing import What

router = APIRouter(prefix="/projects/{project_id}/export", tags=["export"], route_class=IdempotentRoute)

_DOWNLOADS = {**DOWNLOAD_DOCS, **error_responses(404, 416)}


class ExportIn(BaseModel):
    """`formats`: the adapter is always among them; merged and GGUF models are computed on a gpu worker."""

    formats: list[Format] = Field(default=["adapter"], max_length=8)


class ExportFileOut(BaseModel):
    filename: str
    size_bytes: int
    sha256: str


class ExportFilesOut(BaseModel):
    files: list[ExportFileOut]


@router.post("", status_code=202, responses=error_responses(400, 404, 409))
async def export_project(
    project: OwnedProject, session: SessionDep, services: ServicesDep, body: ExportIn | None = None
) -> EnqueuedOut:
    """Each model is compared with the trained one before it is handed out; one that drifts fails the job."""
    wanted = body or ExportIn()
    job = await service.start_export(session, services.broker, project, wanted.formats)
    return enqueued(job, "Export job enqueued")


class PushIn(BaseModel):
    """`repo_id`: `name/model` on the Hub. `what`: one format of the present export."""

    repo_id: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=3, max_length=200, pattern=r"^[^/]+/[^/]+$")
    ]
    private: bool = True
    what: What = "adapter"


@router.post("/push", status_code=202, responses=error_responses(400, 401, 404, 409))
async def push_export(body: PushIn, project: OwnedProject, session: SessionDep, services: ServicesDep) -> EnqueuedOut:
    """Puts the exported files on the HuggingFace Hub, with the token that is kept as the key of `huggingface`."""
    artifacts = await queries.list_exports(session, project.id)
    if not artifacts:
        raise ExportNotFound(ARCHIVE)
    run = await session.get_one(FineTuning, artifacts[0].fine_tuning_id)
    job = await pushing.start(session, services.broker, project, run, **body.model_dump())
    return enqueued(job, "Push job enqueued")


@router.get("/files", responses=error_responses(404))
async def list_export_files(project: OwnedProject, session: SessionDep) -> ExportFilesOut:
    artifacts = await queries.list_exports(session, project.id)
    return ExportFilesOut(
        files=[
            ExportFileOut(filename=item.filename, size_bytes=item.size_bytes, sha256=item.sha256) for item in artifacts
        ]
    )


@router.get("/download", response_class=StreamingResponse, responses=_DOWNLOADS)
async def download_archive(
    project_id: UUID,
    claims: ClaimsDep,
    services: ServicesDep,
    range_header: RangeHeader = None,
    if_range: IfRangeHeader = None,
) -> StreamingResponse:
    artifact = await _find(services, claims, project_id, ARCHIVE)
    return await download(services.storage, artifact, range_header, if_range)


@router.get("/download/{filename:path}", response_class=StreamingResponse, responses=_DOWNLOADS)
async def download_file(
    project_id: UUID,
    filename: str,
    claims: ClaimsDep,
    services: ServicesDep,
    range_header: RangeHeader = None,
    if_range: IfRangeHeader = None,
) -> StreamingResponse:
    """Only names that the export's own list holds are served; a path is just an unknown name."""
    artifact = await _find(services, claims, project_id, filename)
    return await download(services.storage, artifact, range_header, if_range)


async def _find(services: Services, claims: Credentials | None, project_id: UUID, filename: str) -> Artifact:
    # A short transaction of its own: none is open while the storage is asked.
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        project = await project_queries.get_project(session, owner, project_id)
        return await queries.get_export(session, project.id, filename)
