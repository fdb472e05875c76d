"""Files of a project: upload, list, delete."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from backend.api import uploads
from backend.api.auth import ClaimsDep, authenticate
from backend.api.errors import error_responses
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedFile, OwnedProject
from backend.contents import queries, service
from backend.contents.models import Content
from backend.projects import queries as project_queries
from backend.projects import service as projects

router = APIRouter(prefix="/projects/{project_id}/files", tags=["files"])

Kind = Literal["raw_doc", "dataset_upload"]


class FileOut(BaseModel):
    id: UUID
    filename: str
    kind: str
    status: str
    mime_type: str
    size_bytes: int
    created_at: datetime
    page_count: int | None
    character_count: int


class FilesOut(BaseModel):
    files: list[FileOut]


_UPLOAD_DOCS = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "kind": {"type": "string", "enum": ["raw_doc", "dataset_upload"], "default": "raw_doc"},
                    },
                }
            }
        },
    }
}


@router.post("/upload", status_code=201, openapi_extra=_UPLOAD_DOCS, responses=error_responses(400, 404, 413))
async def upload_files(project_id: UUID, request: Request, claims: ClaimsDep, services: ServicesDep) -> FilesOut:
    """Takes all files of the request or none. Two short transactions: none is open while files are read and parsed."""
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        project = await project_queries.get_project(session, owner, project_id)
        stored_bytes = await queries.stored_bytes(session, project.id)
    settings = services.settings
    limits = uploads.UploadLimits(
        max_file_mb=settings.upload_max_file_mb,
        max_files=settings.upload_max_files,
        max_project_mb=settings.upload_max_project_mb,
        room_bytes=settings.upload_max_project_bytes - stored_bytes,
    )
    async with uploads.receive(request, file_field="files", limits=limits) as form:
        prepared = await service.prepare(
            services.storage,
            service.Limits.of(settings),
            folder=projects.folder_of(project),
            kind=form.fields.get("kind", "raw_doc"),
            files=[service.Incoming(file.path, file.filename, file.size_bytes) for file in form.files],
        )
    async with service.kept_or_deleted(services.storage, prepared), services.db.transaction() as session:
        project = await project_queries.get_project(session, owner, project_id)
        contents = await service.add(session, project, prepared, max_project_mb=settings.upload_max_project_mb)
    return FilesOut(files=[file_out(content) for content in contents])


@router.get("", responses=error_responses(404))
async def list_files(
    project: OwnedProject, session: SessionDep, kind: Annotated[Kind | None, Query()] = None
) -> FilesOut:
    contents = await queries.list_contents(session, project.id, kind=kind)
    return FilesOut(files=[file_out(content) for content in contents])


@router.delete("/{file_id}", status_code=204, responses=error_responses(404))
async def delete_file(file: OwnedFile, session: SessionDep, services: ServicesDep) -> None:
    await service.delete(session, services.storage, file)


def file_out(content: Content) -> FileOut:
    return FileOut(
        id=content.public_id,
        filename=content.name,
        kind=content.kind,
        status=content.status,
        mime_type=content.mime_type,
        size_bytes=content.size_bytes,
        created_at=content.created_at,
        page_count=content.page_count,
        character_count=content.character_count,
    )
