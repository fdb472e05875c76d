"""Making, changing and deleting projects."""

import json
from typing import Any

from sqlalchemy import func, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import charging
from backend.jobs import queries as job_queries
from backend.jobs import service as jobs
from backend.jobs.events import EventLog
from backend.jobs.states import JobState
from backend.kit.db import after_commit
from backend.kit.owner import Owner
from backend.projects import queries
from backend.projects.errors import ConfigTooLarge, ProjectNotFound
from backend.projects.models import Project
from backend.projects.stages import Stage
from backend.storage import Storage
from backend.users import plans

MAX_CONFIG_BYTES = 32 * 1024


async def create(
    session: AsyncSession, owner: Owner, *, name: str, description: str | None, task_type: str, config: dict[str, Any]
) -> Project:
    """Raises PlanLimitReached."""
    await plans.require_room_for_project(session, owner.id)
    project = Project(
        user_id=owner.id,
        name=name,
        description=description,
        task_type=task_type,
        config=config,
        stage=Stage.DRAFT,
    )
    session.add(project)
    await session.flush()
    return project


async def change(session: AsyncSession, project: Project, changes: dict[str, Any]) -> Project:
    """Sets the given fields; `config` is merged key by key. Raises ConfigTooLarge, ProjectNotFound."""
    # The row lock makes two changes of one config take turns; whoever waited may find the project gone.
    if await session.get(Project, project.id, populate_existing=True, with_for_update=True) is None:
        raise ProjectNotFound()
    for field, value in changes.items():
        if field == "config":
            value = {**project.config, **value}
            if len(json.dumps(value)) > MAX_CONFIG_BYTES:
                raise ConfigTooLarge(limit_kb=MAX_CONFIG_BYTES // 1024)
        setattr(project, field, value)
    await session.flush()
    await session.refresh(project)
    return project


async def delete(session: AsyncSession, storage: Storage, events: EventLog, project: Project) -> None:
    """Deletes a project with its rows, files and artifacts; its running jobs lose their fence and stop by themselves.

    A worker in the middle of a job finds its row gone at its next heartbeat, writes nothing and ends its child.
    """
    live = await job_queries.lock_live(session, project.user_id, project_id=project.id)
    for job in live:
        if job.state == JobState.QUEUED:
            await jobs.cancel(session, events, job)
    prefix = folder_of(project)
    await session.delete(project)
    await session.flush()
    # What is left of the jobs is nothing; of what they held, neither.
    await charging.release_of_jobs(session, [job.id for job in live])

    async def sweep_files() -> None:
        await storage.delete_under(prefix)

    after_commit(session, sweep_files)


async def settle_stage(session: AsyncSession, project_id: int, *, failed: bool = False) -> None:
    """Sets the stage by what the project has and what still runs in it; a step that just failed shows as error."""
    await move_to(session, project_id, Stage.ERROR if failed else await queries.stage_of(session, project_id))


async def move_to(session: AsyncSession, project_id: int, stage: Stage) -> None:
    await session.execute(
        update(Project).where(Project.id == project_id).values(stage=stage, updated_at=func.clock_timestamp())
    )


def folder_of(project: Project) -> str:
    """The key prefix under which everything of a project is stored."""
    return f"projects/{project.public_id}"
