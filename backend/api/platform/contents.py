"""Contents as the dashboard sees them: files, pages and videos, each with where its text stands."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api import uploads
from backend.api.auth import ClaimsDep, OwnerDep, authenticate
from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.language import ReaderLanguage, told
from backend.api.platform.deps import LARGEST_ID, OwnedContent, RowIdQuery, WindowDep, count_all
from backend.api.services import Services, ServicesDep
from backend.api.session import SessionDep
from backend.contents import queries, service
from backend.contents.models import Content
from backend.contents.transcription import service as transcription
from backend.contents.web.guard import Guard
from backend.datasets import uploads as dataset_uploads
from backend.kit.language import Language
from backend.kit.owner import Owner
from backend.projects import queries as project_queries
from backend.projects import service as projects

router = APIRouter(prefix="/contents", tags=["platform contents"], route_class=IdempotentRoute)
# Its body is a stream, of which nobody can say beforehand whether it was sent before.
upload_router = APIRouter(prefix="/contents", tags=["platform contents"])

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]
Description = Annotated[str, StringConstraints(max_length=10_000)]
Url = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000)]
RowNumber = Annotated[int, Field(ge=1, le=LARGEST_ID)]
Status = Literal["pending", "processing", "processed", "error"]


class ContentIn(BaseModel):
    project_id: RowNumber
    name: Name
    description: Description | None = None
    type: Literal["youtube", "website"]
    url: Url


class ContentFromUrlIn(ContentIn):
    type: Literal["youtube", "website"] = "website"


class ContentChange(BaseModel):
    """What is left out stays as it is."""

    name: Name | None = None
    description: Description | None = None

    @field_validator("name")
    @classmethod
    def _not_null(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("leave the field out to keep it; it cannot be null")
        return value


class UploadFields(BaseModel):
    """The fields beside the file; `file_type` is a hint that nothing depends on, since the bytes say what they are."""

    project_id: RowNumber
    name: Name | None = None
    description: Description | None = None
    file_type: Annotated[str, StringConstraints(max_length=100)] | None = None


class ContentOut(BaseModel):
    id: int
    project_id: int
    name: str
    description: str | None
    type: str
    url: str | None
    file_path: str | None  # a name to show; no path of the server, and nothing can be fetched by it
    size: int  # bytes
    status: Status
    created_at: datetime
    updated_at: datetime
    character_count: int
    language: str | None
    error_code: str | None
    error_message: str | None
    task_id: UUID | None


_UPLOAD_DOCS = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "project_id"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "project_id": {"type": "integer", "minimum": 1},
                        "name": {"type": "string", "maxLength": 255},
                        "description": {"type": "string", "maxLength": 10_000},
                        "file_type": {"type": "string", "maxLength": 100},
                    },
                }
            }
        },
    }
}


@router.get("", responses=error_responses(401, 404))
async def list_contents(
    owner: OwnerDep,
    session: SessionDep,
    window: WindowDep,
    response: Response,
    reader: ReaderLanguage,
    project_id: RowIdQuery = None,
) -> list[ContentOut]:
    project = None if project_id is None else await project_queries.get_by_number(session, owner, project_id)
    page = await queries.page_by_number(session, owner, window, project=project)
    count_all(response, page.total)
    tasks = await queries.job_names(session, page.items)
    return [content_out(content, owner, tasks, reader) for content in page.items]


@router.post("", status_code=201, responses=error_responses(400, 401, 404))
async def create_content(body: ContentIn, owner: OwnerDep, session: SessionDep, services: ServicesDep) -> ContentOut:
    """Adds a web page or a video; a job fetches it."""
    return await _add_link(body, owner, session, services)


@router.post("/url", status_code=201, responses=error_responses(400, 401, 404))
async def create_content_from_url(
    body: ContentFromUrlIn, owner: OwnerDep, session: SessionDep, services: ServicesDep
) -> ContentOut:
    """The same as POST /contents, with `website` as the default type."""
    return await _add_link(body, owner, session, services)


@upload_router.post(
    "/upload", status_code=201, openapi_extra=_UPLOAD_DOCS, responses=error_responses(400, 401, 404, 413, 422)
)
async def upload_content(request: Request, claims: ClaimsDep, services: ServicesDep) -> ContentOut:
    """Takes one file and reads it, as the studio does; a job writes down what is spoken.

    Two short transactions: none is open while it is read.
    """
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
    settings = services.settings
    limits = uploads.UploadLimits(
        max_file_mb=settings.upload_max_file_mb,
        max_files=1,
        max_project_mb=settings.upload_max_project_mb,
        # Which project it is for stands in the body, so what is left of it is looked at when the file is here.
        room_bytes=settings.upload_max_project_bytes,
    )
    async with uploads.receive(request, file_field="file", limits=limits) as form:
        fields = _fields_of(form)
        async with services.db.transaction() as session:
            folder = projects.folder_of(await project_queries.get_by_number(session, owner, fields.project_id))
        prepared = await service.prepare(
            services.storage,
            service.Limits.of(settings),
            folder=folder,
            kind="raw_doc",
            files=[service.Incoming(file.path, file.filename, file.size_bytes) for file in form.files],
            with_media=True,
        )
    async with service.kept_or_deleted(services.storage, prepared), services.db.transaction() as session:
        project = await project_queries.get_by_number(session, owner, fields.project_id)
        [content] = await service.add(session, project, prepared, max_project_mb=settings.upload_max_project_mb)
        content.name, content.description = fields.name or content.name, fields.description
        if content.status == "pending":
            await transcription.start_transcription(session, services.broker, content)
        return await _shown(session, content, owner)


@router.get("/{content_id}", responses=error_responses(401, 404))
async def get_content(
    content: OwnedContent, owner: OwnerDep, session: SessionDep, reader: ReaderLanguage
) -> ContentOut:
    return content_out(content, owner, await queries.job_names(session, [content]), reader)


@router.put("/{content_id}", responses=error_responses(401, 404))
async def change_content(
    body: ContentChange, content: OwnedContent, owner: OwnerDep, session: SessionDep, reader: ReaderLanguage
) -> ContentOut:
    changed = await service.change(session, content, body.model_dump(exclude_unset=True))
    return content_out(changed, owner, await queries.job_names(session, [changed]), reader)


@router.delete("/{content_id}", status_code=204, responses=error_responses(401, 404))
async def delete_content(content: OwnedContent, session: SessionDep, services: ServicesDep) -> None:
    """Deletes a content and stops its job; the examples that were imported from it go with it."""
    if content.kind == "dataset_upload":
        await dataset_uploads.withdraw(session, content)
    await service.delete(session, services.storage, services.events, content)


async def _add_link(body: ContentIn, owner: Owner, session: AsyncSession, services: Services) -> ContentOut:
    project = await project_queries.get_by_number(session, owner, body.project_id)
    content = await service.add_link(
        session,
        services.broker,
        project,
        type=body.type,
        url=body.url,
        name=body.name,
        description=body.description,
        guard=Guard(test_hosts=frozenset(services.settings.web_test_hosts)),
    )
    return await _shown(session, content, owner)


def _fields_of(form: uploads.Form) -> UploadFields:
    """Empty fields count as left out: a form sends them so. Raises RequestValidationError."""
    try:
        return UploadFields.model_validate({name: value for name, value in form.fields.items() if value.strip()})
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in problems]) from error


async def _shown(session: AsyncSession, content: Content, owner: Owner) -> ContentOut:
    await session.flush()
    await session.refresh(content)
    return content_out(content, owner, await queries.job_names(session, [content]))


def content_out(content: Content, owner: Owner, tasks: dict[int, UUID], reader: Language = "en") -> ContentOut:
    """`tasks`: see `queries.job_names`."""
    is_file = content.url is None
    return ContentOut(
        id=content.id,
        project_id=content.project_id,
        name=content.name,
        description=content.description,
        type=content.type,
        url=content.url,
        file_path=f"/uploads/user_{owner.id}/{content.file_key.rpartition('/')[2]}" if is_file else None,
        size=content.size_bytes,
        status=_STATUSES[content.status],
        created_at=content.created_at,
        updated_at=content.updated_at,
        character_count=content.character_count,
        language=content.language,
        error_code=content.error_code,
        error_message=told(reader, content.error_code, content.error_message, content.error_context),
        task_id=None if content.job_id is None else tasks.get(content.job_id),
    )


_STATUSES: dict[str, Status] = {
    "pending": "pending",
    "processing": "processing",
    "ready": "processed",
    "error": "error",
}
