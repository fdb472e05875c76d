"""Projects: create, list, read, change, delete."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from backend.api.auth import OwnerDep
from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedProject, WindowDep
from backend.projects import queries, service
from backend.projects.models import Project
from backend.projects.stages import Stage
from backend.training import leaving

router = APIRouter(prefix="/projects", tags=["projects"], route_class=IdempotentRoute)

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
TaskType = Literal["qa", "instruction", "chat", "classification", "summarization"]


class ConfigIn(BaseModel):
    """Known settings are checked; others are kept as they are."""

    model_config = ConfigDict(extra="allow")

    num_examples_target: int | None = Field(default=None, ge=1, le=100_000)
    max_seq_length: int | None = Field(default=None, ge=32, le=1_048_576)
    train_eval_split: float | None = Field(default=None, gt=0, lt=1)
    # The classes of task_type classification.
    labels: list[Label] | None = Field(default=None, min_length=2, max_length=200)

    @model_validator(mode="after")
    def _bounded(self) -> "ConfigIn":
        if len(self.model_dump_json()) > service.MAX_CONFIG_BYTES:
            raise ValueError(f"the whole config must be at most {service.MAX_CONFIG_BYTES // 1024} KB")
        return self


class ProjectIn(BaseModel):
    name: Name
    description: Annotated[str, StringConstraints(max_length=10_000)] | None = None
    task_type: TaskType = "qa"
    config: ConfigIn = ConfigIn()


class ProjectPatch(BaseModel):
    name: Name | None = None
    description: Annotated[str, StringConstraints(max_length=10_000)] | None = None
    task_type: TaskType | None = None
    config: ConfigIn | None = None

    @field_validator("name", "task_type", "config")
    @classmethod
    def _not_null(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("leave the field out to keep it; it cannot be null")
        return value


class StatsOut(BaseModel):
    file_count: int
    chunk_count: int
    example_count: int
    last_job_status: str | None


class ProjectOut(BaseModel):
    id: UUID
    name: str
    description: str | None
    task_type: str
    base_model_id: str | None
    model_info: dict[str, Any] | None
    status: str
    config: dict[str, Any]
    created_at: datetime
    updated_at: datetime


class ProjectDetailOut(ProjectOut):
    stats: StatsOut


class ProjectItemOut(BaseModel):
    id: UUID
    name: str
    task_type: str
    status: str
    base_model_id: str | None
    created_at: datetime
    updated_at: datetime
    stats: StatsOut


class ProjectListOut(BaseModel):
    items: list[ProjectItemOut]
    total: int
    limit: int
    offset: int


@router.post("", status_code=201)
async def create_project(body: ProjectIn, owner: OwnerDep, session: SessionDep) -> ProjectOut:
    project = await service.create(
        session,
        owner,
        name=body.name,
        description=body.description,
        task_type=body.task_type,
        config=body.config.model_dump(exclude_none=True),
    )
    return ProjectOut(**_fields(project))


@router.get("", response_model=ProjectListOut)
async def list_projects(
    owner: OwnerDep, session: SessionDep, window: WindowDep, status: Annotated[Stage | None, Query()] = None
) -> Response:
    page = await queries.page_projects(session, owner, window, status)
    # The hottest list: rows go straight to JSON, without a model in between.
    items = [
        {
            "id": row[0],
            "name": row[1],
            "task_type": row[2],
            "status": row[3],
            "base_model_id": row[4],
            "created_at": row[5],
            "updated_at": row[6],
            "stats": {
                "file_count": row[7],
                "chunk_count": row[8],
                "example_count": row[9],
                "last_job_status": row[10],
            },
        }
        for row in page.items
    ]
    body = {"items": items, "total": page.total, "limit": window.limit, "offset": window.offset}
    return Response(orjson.dumps(body, default=str, option=orjson.OPT_UTC_Z), media_type="application/json")


@router.get("/{project_id}", responses=error_responses(404))
async def get_project(project: OwnedProject, session: SessionDep) -> ProjectDetailOut:
    return await _detail(session, project)


@router.patch("/{project_id}", responses=error_responses(404))
async def change_project(body: ProjectPatch, project: OwnedProject, session: SessionDep) -> ProjectDetailOut:
    changes = body.model_dump(exclude_unset=True)
    if body.config is not None:
        changes["config"] = body.config.model_dump(exclude_none=True)
    return await _detail(session, await service.change(session, project, changes))


@router.delete("/{project_id}", status_code=204, responses=error_responses(404))
async def delete_project(project: OwnedProject, session: SessionDep, services: ServicesDep) -> None:
    await leaving.withdraw_project(
        session, services.background, services.db, services.settings, services.sealer, project
    )
    await service.delete(session, services.storage, services.events, project)


async def _detail(session: SessionDep, project: Project) -> ProjectDetailOut:
    return ProjectDetailOut(**_fields(project), stats=StatsOut(**await queries.stats_of(session, project)))


def _fields(project: Project) -> dict[str, Any]:
    return {
        "id": project.public_id,
        "name": project.name,
        "description": project.description,
        "task_type": project.task_type,
        "base_model_id": project.base_model_id,
        "model_info": project.model_info,
        "status": project.stage,
        "config": project.config,
        "created_at": project.created_at,
        "updated_at": project.updated_at,
    }
