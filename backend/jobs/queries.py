"""Owner-scoped SELECTs over jobs."""

from collections.abc import Collection, Sequence
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


async def count_attempts(session: AsyncSession, job_id: int) -> int:
    """The attempts that count by now: a run that got on has earned earlier ones back."""
    return int(await session.scalar(select(Job.attempts).where(Job.id == job_id)) or 0)


async def list_by_id(session: AsyncSession, ids: Collection[int]) -> Sequence[Job]:
    """Those of rows that the caller was already found to own."""
    return (await session.scalars(select(Job).where(Job.id.in_(ids)))).all() if ids else []


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


async def lock_live(session: AsyncSession, user_id: int, *, project_id: int | None = None) -> Sequence[Job]:
    """The live jobs of a user, or of one project, locked: no worker is in the middle of writing what one of them did.

    Whoever deletes jobs takes these locks first: a worker locks its job before anything else.
    """
    mine = select(Job).where(Job.user_id == user_id, Job.state.in_(LIVE))
    if project_id is not None:
        mine = mine.where(Job.project_id == project_id)
    locked = mine.order_by(Job.id).with_for_update().execution_options(populate_existing=True)
    return (await session.scalars(locked)).all()


async def is_taken(session: AsyncSession, exclusive_key: str) -> bool:
    """Whether a live job has the key, so that another one with it would be refused."""
    found = await session.scalar(select(Job.id).where(Job.exclusive_key == exclusive_key, Job.state.in_(LIVE)))
    return found is not None
