"""Owner-scoped SELECTs over jobs."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs.errors import JobNotFound
from backend.jobs.models import Job
from backend.jobs.states import LIVE
from backend.kit.owner import Owner


async def get_job(session: AsyncSession, owner: Owner, public_id: UUID) -> Job:
    job = await session.scalar(select(Job).where(Job.user_id == owner.id, Job.public_id == public_id))
    if job is None:
        raise JobNotFound()
    return job


async def list_jobs(
    session: AsyncSession,
    project_id: int,
    *,
    kind: str | None = None,
    state: str | None = None,
    limit: int = 200,
    offset: int = 0,
) -> Sequence[Job]:
    """The project's jobs, newest first."""
    statement = select(Job).where(Job.project_id == project_id)
    if kind is not None:
        statement = statement.where(Job.kind == kind)
    if state is not None:
        statement = statement.where(Job.state == state)
    return (await session.scalars(statement.order_by(Job.id.desc()).limit(limit).offset(offset))).all()


async def list_of_owner(session: AsyncSession, owner: Owner) -> Sequence[Row[UUID, str]]:
    """The public id and state of every job of a user."""
    return (await session.execute(select(Job.public_id, Job.state).where(Job.user_id == owner.id))).all()


async def live_jobs(session: AsyncSession, project_id: int) -> Sequence[Job]:
    return (await session.scalars(select(Job).where(Job.project_id == project_id, Job.state.in_(LIVE)))).all()
