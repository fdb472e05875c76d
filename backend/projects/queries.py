"""Owner-scoped SELECTs over projects."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.db import fetch
from backend.kit.owner import Owner
from backend.kit.pagination import Page, Window
from backend.projects.errors import ProjectNotFound
from backend.projects.models import Project
from backend.projects.stages import Stage

# Plain SQL on purpose: this is the hottest list, and what it counts lies in tables of domains above this one.
_STATS = """
  (SELECT count(*) FROM contents c WHERE c.project_id = p.id) AS file_count,
  (SELECT count(*) FROM chunks k WHERE k.project_id = p.id) AS chunk_count,
  (SELECT count(*) FROM examples e
     WHERE e.dataset_id = (SELECT max(d.id) FROM datasets d WHERE d.project_id = p.id AND d.status <> 'error')
       AND e.split IN ('train', 'eval')) AS example_count,
  (SELECT j.state FROM jobs j WHERE j.project_id = p.id ORDER BY j.id DESC LIMIT 1) AS last_job_status
"""
# $1 owner, $2 stage or NULL, $3 limit, $4 offset. The total comes with the rows; past the last one it is asked for.
LIST = f"""
SELECT p.public_id, p.name, p.task_type, p.stage, p.base_model_id, p.created_at, p.updated_at, {_STATS},
  count(*) OVER () AS total
FROM projects p
WHERE p.user_id = $1 AND ($2::varchar IS NULL OR p.stage = $2)
ORDER BY p.id DESC LIMIT $3 OFFSET $4
"""  # noqa: S608  (a constant of this file)
_TOTAL = "SELECT count(*) FROM projects p WHERE p.user_id = $1 AND ($2::varchar IS NULL OR p.stage = $2)"
_STATS_OF_ONE = text(f"SELECT {_STATS} FROM projects p WHERE p.id = :project_id")  # noqa: S608  (a constant of this file)


_STAGE = text("""
SELECT CASE
  WHEN EXISTS (SELECT FROM jobs j WHERE j.project_id = :project_id AND j.state IN ('queued', 'running')
               AND j.kind IN ('training', 'remote_submit'))
    OR EXISTS (SELECT FROM fine_tunings f WHERE f.project_id = :project_id AND f.provider <> 'local'
               AND f.dataset_version IS NOT NULL AND f.status IN ('queued', 'preparing', 'training')) THEN 'training'
  WHEN EXISTS (SELECT FROM jobs j WHERE j.project_id = :project_id AND j.state IN ('queued', 'running')
               AND j.kind = 'dataset_generate') THEN 'generating'
  WHEN EXISTS (SELECT FROM jobs j WHERE j.project_id = :project_id AND j.state IN ('queued', 'running')
               AND j.kind IN ('chunk_generate', 'dataset_prepare')) THEN 'chunking'
  WHEN EXISTS (SELECT FROM fine_tunings f WHERE f.project_id = :project_id AND f.status = 'completed') THEN 'trained'
  WHEN EXISTS (SELECT FROM datasets d WHERE d.project_id = :project_id AND d.status = 'ready') THEN 'dataset_ready'
  WHEN EXISTS (SELECT FROM chunks k WHERE k.project_id = :project_id) THEN 'chunked'
  WHEN EXISTS (SELECT FROM contents c WHERE c.project_id = :project_id AND c.text_key IS NOT NULL) THEN 'ready'
  ELSE 'draft' END
""")


async def page_projects(session: AsyncSession, owner: Owner, window: Window, stage: str | None) -> Page[Sequence[Any]]:
    """The owner's projects, newest first, as rows with the four figures of `stats`."""
    rows = await fetch(session, LIST, owner.id, stage, window.limit, window.offset)
    if rows or window.offset == 0:
        return Page(rows, rows[0]["total"] if rows else 0)
    return Page(rows, (await fetch(session, _TOTAL, owner.id, stage))[0][0])


async def stats_of(session: AsyncSession, project: Project) -> dict[str, Any]:
    row = (await session.execute(_STATS_OF_ONE, {"project_id": project.id})).one()
    return dict(row._mapping)


async def stage_of(session: AsyncSession, project_id: int) -> Stage:
    """The furthest stage that the project's rows show; work that is under way comes first."""
    return Stage(await session.scalar(_STAGE, {"project_id": project_id}))


async def get_project(session: AsyncSession, owner: Owner, public_id: UUID) -> Project:
    project = await session.scalar(select(Project).where(Project.public_id == public_id, Project.user_id == owner.id))
    if project is None:
        raise ProjectNotFound()
    return project


async def get_by_number(session: AsyncSession, owner: Owner, number: int) -> Project:
    """By the integer id that the platform face shows."""
    project = await session.scalar(select(Project).where(Project.id == number, Project.user_id == owner.id))
    if project is None:
        raise ProjectNotFound()
    return project


async def page_by_number(
    session: AsyncSession, owner: Owner, window: Window, *, archived: bool | None = None
) -> Page[Project]:
    """The owner's projects, newest first."""
    conditions = [Project.user_id == owner.id]
    if archived is not None:
        conditions.append(Project.is_archived == archived)
    rows = await session.scalars(
        select(Project).where(*conditions).order_by(Project.id.desc()).limit(window.limit).offset(window.offset)
    )
    total = await session.scalar(select(func.count()).select_from(Project).where(*conditions))
    return Page(rows.all(), int(total or 0))


async def list_of_owner(session: AsyncSession, owner: Owner) -> Sequence[Project]:
    return (await session.scalars(select(Project).where(Project.user_id == owner.id).order_by(Project.id))).all()


async def get_by_id(session: AsyncSession, project_id: int) -> Project:
    """For a job, whose row says which project it belongs to."""
    project = await session.get(Project, project_id)
    if project is None:
        raise ProjectNotFound()
    return project
