"""Where ids of the studio face die: a UUID in the path becomes the caller's own object, or 404."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query

from backend.api.auth import OwnerDep
from backend.api.session import SessionDep
from backend.contents import queries as content_queries
from backend.contents.models import Content
from backend.datasets import queries as dataset_queries
from backend.datasets.models import Example
from backend.jobs import queries as job_queries
from backend.jobs.models import Job
from backend.kit.pagination import Window
from backend.projects import queries as project_queries
from backend.projects.models import Project


async def owned_project(project_id: UUID, owner: OwnerDep, session: SessionDep) -> Project:
    return await project_queries.get_project(session, owner, project_id)


OwnedProject = Annotated[Project, Depends(owned_project)]


async def owned_file(file_id: UUID, project: OwnedProject, session: SessionDep) -> Content:
    return await content_queries.get_content(session, project, file_id)


async def owned_example(example_id: UUID, project: OwnedProject, session: SessionDep) -> Example:
    return await dataset_queries.get_example(session, project, example_id)


async def owned_job(job_id: UUID, owner: OwnerDep, session: SessionDep) -> Job:
    return await job_queries.get_job(session, owner, job_id)


async def window(
    limit: Annotated[int, Query(ge=1, le=500)] = 50, offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0
) -> Window:
    return Window(limit=limit, offset=offset)


OwnedFile = Annotated[Content, Depends(owned_file)]
OwnedExample = Annotated[Example, Depends(owned_example)]
OwnedJob = Annotated[Job, Depends(owned_job)]
WindowDep = Annotated[Window, Depends(window)]
