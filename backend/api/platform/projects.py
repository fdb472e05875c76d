"""Projects as the dashboard sees them: active or archived."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, StringConstraints, field_validator

from backend.api.auth import OwnerDep
from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.platform.deps import OwnedProject, WindowDep, count_all
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.projects import queries, service
from backend.projects.models import Project
from backend.training import leaving

router = APIRouter(prefix="/projects", tags=["platform projects"], route_class=IdempotentRoute)

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Description = Annotated[str, StringConstraints(max_length=10_000)]
Status = Literal["active", "archived"]
DEFAULT_TASK = "qa"


class ProjectIn(BaseModel):
    name: Name
    description: Description | None = None


class ProjectChange(BaseModel):
    """What is left out stays as it is."""

    name: Name | None = None
    description: Description | None = None
    status: Status | None = None

    @field_validator("name", "status")
    @classmethod
    def _not_null(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("leave the field out to keep it; it cannot be null")
        return value


class ProjectOut(BaseModel):
    id: int
    user_id: int
    name: str
    description: str | None
    status: Status
    created_at: datetime
    updated_at: datetime


@router.get("", responses=error_responses(401))
async def list_projects(
    owner: OwnerDep,
    session: SessionDep,
    window: WindowDep,
    response: Response,
    status: Annotated[Status | None, Query()] = None,
) -> list[ProjectOut]:
    archived = None if status is None else status == "archived"
    page = await queries.page_by_number(session, owner, window, archived=archived)
    count_all(response, page.total)
    return [project_out(project) for project in page.items]


@router.post("", status_code=201, responses=error_responses(401, 403))
async def create_project(body: ProjectIn, owner: OwnerDep, session: SessionDep) -> ProjectOut:
    project = await service.create(
        session, owner, name=body.name, description=body.description, task_type=DEFAULT_TASK, config={}
    )
    await session.refresh(project)
    return project_out(project)


@router.get("/{project_id}", responses=error_responses(401, 404))
async def get_project(project: OwnedProject) -> ProjectOut:
    return project_out(project)


@router.put("/{project_id}", responses=error_responses(401, 404))
async def change_project(body: ProjectChange, project: OwnedProject, session: SessionDep) -> ProjectOut:
    changes = body.model_dump(exclude_unset=True)
    if "status" in changes:
        changes["is_archived"] = changes.pop("status") == "archived"
    return project_out(await service.change(session, project, changes))


@router.delete("/{project_id}", status_code=204, responses=error_responses(401, 404))
async def delete_project(project: OwnedProject, session: SessionDep, services: ServicesDep) -> None:
    await leaving.withdraw_project(
        session, services.background, services.db, services.settings, services.sealer, project
    )
    await service.delete(session, services.storage, services.events, project)


def project_out(project: Project) -> ProjectOut:
    return ProjectOut(
        id=project.id,
        user_id=project.user_id,
        name=project.name,
        description=project.description,
        status="archived" if project.is_archived else "active",
        created_at=project.created_at,
        updated_at=project.updated_at,
    )
