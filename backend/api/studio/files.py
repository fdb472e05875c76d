"""Files of a project: upload, list, delete."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from backend.api import uploads
from backend.api.auth import ClaimsDep, authenticate
from backend.api.errors import error_responses
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedFile, OwnedProject
from backend.contents import queries, service
from backend.contents.errors import UnknownSplit
from backend.contents.models import Content
from backend.datasets import uploads as dataset_uploads
from backend.projects import queries as project_queries
from backend.projects import service as projects

router = APIRouter(prefix="/projects/{project_id}/files", tags=["files"])

Kind = Literal["raw_doc", "dataset_upload"]


class RowErrorOut(BaseModel):
    line: int
    code: str
    message: str


class ImportOut(BaseModel):
    """What an uploaded dataset held; `imported` counts the rows that are examples by now."""

    shape: str | None
    rows: int
    valid: int
    invalid: int
    errors: list[RowErrorOut]
    error_counts: dict[str, int]
    imported: int = 0


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
    purpose: str | None
    # Of datasets; null for documents. The first is called `import`, which is no name in Python.
    report: ImportOut | None = Field(serialization_alias="import")
    import_job_id: UUID | None


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
                        "purpose": {"type": "string", "enum": list(service.PURPOSES), "default": service.EXAMPLES},
                        "split": {"type": "string", "enum": list(dataset_uploads.SPLITS), "default": "auto"},
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
        split = form.fields.get("split", "auto")
        if split not in dataset_uploads.SPLITS:
            raise UnknownSplit(accepted=" or ".join(dataset_uploads.SPLITS))
        prepared = await service.prepare(
            services.storage,
            service.Limits.of(settings),
            folder=projects.folder_of(project),
            kind=form.fields.get("kind", "raw_doc"),
            purpose=form.fields.get("purpose", service.EXAMPLES),
            files=[service.Incoming(file.path, file.filename, file.size_bytes) for file in form.files],
        )
    async with service.kept_or_deleted(services.storage, prepared), services.db.transaction() as session:
        project = await project_queries.get_project(session, owner, project_id)
        contents = await service.add(session, project, prepared, max_project_mb=settings.upload_max_project_mb)
        for content in contents:
            if content.kind == "dataset_upload" and content.purpose == service.EXAMPLES:
                await dataset_uploads.start_import(session, services.broker, project, content, split=split)
    return FilesOut(files=[file_out(content) for content in contents])


@router.get("", responses=error_responses(404))
async def list_files(
    project: OwnedProject, session: SessionDep, kind: Annotated[Kind | None, Query()] = None
) -> FilesOut:
    contents = await queries.list_contents(session, project.id, kind=kind)
    return FilesOut(files=[file_out(content) for content in contents])


@router.delete("/{file_id}", status_code=204, responses=error_responses(404))
async def delete_file(file: OwnedFile, session: SessionDep, services: ServicesDep) -> None:
    """Deletes a file; the examples that were imported from it go with it."""
    if file.kind == "dataset_upload":
        await dataset_uploads.withdraw(session, file)
    await service.delete(session, services.storage, services.events, file)


def file_out(content: Content) -> FileOut:
    report: dict[str, Any] | None = content.import_report
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
        purpose=content.purpose if content.kind == "dataset_upload" else None,
        report=None if report is None else ImportOut.model_validate(report),
        import_job_id=None if report is None else report.get("job_id"),
    )
