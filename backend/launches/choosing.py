"""Which project and contents an onboarding is about, when the request leaves that open."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents.errors import UnknownContent
from backend.contents.models import Content
from backend.kit.db import is_one_of
from backend.kit.owner import Owner
from backend.launches.errors import ContentsOfSeveralProjects, NoContentsChosen
from backend.projects import queries as project_queries
from backend.projects.models import Project


async def choose(
    session: AsyncSession, owner: Owner, *, project_id: int | None, named: Sequence[int], only_named: bool
) -> tuple[int, list[int]]:
    """The numbers of a project of the owner's and of its contents: those named, and unless `only_named` all others
    that can be read or will be.

    Raises ProjectNotFound, UnknownContent, ContentsOfSeveralProjects, NoContentsChosen.
    """
    if project_id is not None:
        await project_queries.get_by_number(session, owner, project_id)
    elif named:
        project_id = await _project_of(session, owner, named)
    else:
        project_id = await _only_project(session, owner)
    if only_named:
        content_ids = set(named)
    else:
        usable = select(Content.id).where(
            Content.project_id == project_id, Content.kind == "raw_doc", Content.status != "error"
        )
        content_ids = {*named, *await session.scalars(usable)}
    if not content_ids:
        raise NoContentsChosen()
    return project_id, sorted(content_ids)


async def _project_of(session: AsyncSession, owner: Owner, numbers: Sequence[int]) -> int:
    rows = await session.execute(
        select(Content.id, Content.project_id)
        .join(Project, Project.id == Content.project_id)
        .where(Project.user_id == owner.id, is_one_of(Content.id, numbers))
    )
    found = {row.id: row.project_id for row in rows}
    if len(found) < len(set(numbers)):
        raise UnknownContent()
    projects: list[int] = sorted(set(found.values()))
    if len(projects) > 1:
        raise ContentsOfSeveralProjects(project_ids=projects)
    return projects[0]


async def _only_project(session: AsyncSession, owner: Owner) -> int:
    """Of a newcomer, who has one with contents."""
    filled = select(Content.id).where(Content.project_id == Project.id, Content.kind == "raw_doc").exists()
    mine = select(Project.id).where(Project.user_id == owner.id, ~Project.is_archived, filled)
    projects = (await session.scalars(mine.order_by(Project.id).limit(100))).all()
    if not projects:
        raise NoContentsChosen()
    if len(projects) > 1:
        raise ContentsOfSeveralProjects(project_ids=list(projects))
    return projects[0]
