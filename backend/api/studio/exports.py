"""Exports: make, list, download."""

from typing import Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from backend.api.auth import ClaimsDep, Credentials, authenticate
from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.services import Services, ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedProject
from backend.api.studio.schemas import EnqueuedOut, enqueued
from backend.projects import queries as project_queries
from backend.storage import BlobNotFound
from backend.training import queries, service
from backend.training.errors import ExportNotFound
from backend.training.exports import ARCHIVE

router = APIRouter(prefix="/projects/{project_id}/export", tags=["export"], route_class=IdempotentRoute)

_MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown; charset=utf-8", ".zip": "application/zip"}
_BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


class ExportFileOut(BaseModel):
    filename: str
    size_bytes: int
    sha256: str


class ExportFilesOut(BaseModel):
    files: list[ExportFileOut]


@router.post("", status_code=202, responses=error_responses(400, 404, 409))
async def export_project(project: OwnedProject, session: SessionDep, services: ServicesDep) -> EnqueuedOut:
    return enqueued(await service.start_export(session, services.broker, project), "Export job enqueued")


@router.get("/files", responses=error_responses(404))
async def list_export_files(project: OwnedProject, session: SessionDep) -> ExportFilesOut:
    artifacts = await queries.list_exports(session, project.id)
    return ExportFilesOut(
        files=[
            ExportFileOut(filename=item.filename, size_bytes=item.size_bytes, sha256=item.sha256) for item in artifacts
        ]
    )


@router.get("/download", response_class=StreamingResponse, responses={**_BINARY, **error_responses(404)})
async def download_archive(project_id: UUID, claims: ClaimsDep, services: ServicesDep) -> StreamingResponse:
    return await _download(services, claims, project_id, ARCHIVE)


@router.get("/download/{filename}", response_class=StreamingResponse, responses={**_BINARY, **error_responses(404)})
async def download_file(project_id: UUID, filename: str, claims: ClaimsDep, services: ServicesDep) -> StreamingResponse:
    """Only names that the export's own list holds are served; a path is just an unknown name."""
    return await _download(services, claims, project_id, filename)


async def _download(
    services: Services, claims: Credentials | None, project_id: UUID, filename: str
) -> StreamingResponse:
    # A short transaction of its own: none is open while the storage is asked.
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        project = await project_queries.get_project(session, owner, project_id)
        artifact = await queries.get_export(session, project.id, filename)
    try:
        parts = await services.storage.stream(artifact.file_key)
    except BlobNotFound as error:
        raise ExportNotFound(artifact.filename) from error
    suffix = artifact.filename[artifact.filename.rfind(".") :]
    return StreamingResponse(
        parts,
        media_type=_MEDIA_TYPES.get(suffix, "application/octet-stream"),
        headers={
            "Content-Length": str(artifact.size_bytes),
            # An export's names are plain ASCII without quotes, which every client understands.
            "Content-Disposition": f'attachment; filename="{quote(artifact.filename)}"',
            "X-Content-Type-Options": "nosniff",
            "ETag": f'"{artifact.sha256}"',
        },
    )
