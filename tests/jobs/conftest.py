"""A database and a Redis of their own for jobs: a sweep sees every job there is."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs import kinds, queue, service
from backend.jobs.events import EventLog
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job, Tick
from backend.jobs.queue import Claim
from backend.jobs.states import JobState
from backend.kit import redis as kit_redis
from backend.kit.broker import QUEUES, Broker
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.users.models import User
from tests.conftest import clone_database

ENDINGS: list[tuple[int, str]] = []


async def _note_ending(session: AsyncSession, job: Job) -> None:
    """Writes in the transaction that ends the job, and fails for the job that says so."""
    await session.execute(text("SELECT 1"))
    if job.params.get("ending") == "fails":
        raise RuntimeError("this ending always fails")
    ENDINGS.append((job.id, job.state))


WORK = kinds.register(JobKind("test.work", "default", max_attempts=3, ending=_note_ending))


@dataclass
class Place:
    """One database with one user, and one Redis database."""

    db: Database
    redis: Redis
    redis_url: str
    broker: Broker
    events: EventLog
    user_id: int

    async def enqueue(self, kind: JobKind = WORK, **fields: Any) -> Job:
        async with self.db.transaction() as session:
            return await queue.enqueue(session, self.broker, kind, user_id=self.user_id, project_id=None, **fields)

    async def claim(self, job: Job, *, lease_seconds: float = 60.0) -> Claim:
        async with self.db.transaction() as session:
            found = await queue.claim(session, job.id, worker="w", lease_seconds=lease_seconds)
        assert found is not None
        return found

    async def row(self, job: Job) -> Job:
        async with self.db.transaction() as session:
            return (await session.scalars(select(Job).where(Job.id == job.id))).one()

    async def set(self, job: Job, **values: Any) -> None:
        async with self.db.transaction() as session:
            await session.execute(update(Job).where(Job.id == job.id).values(**values))

    async def expire(self, job: Job) -> None:
        await self.set(job, lease_until=text("clock_timestamp() - interval '1 second'"))

    async def cancel(self, job: Job) -> Job:
        async with self.db.transaction() as session:
            return await service.cancel(session, self.events, job)

    async def sweep(self, *, resend_seconds: float = 10.0) -> int:
        """One tick, however soon after the last one."""
        async with self.db.transaction() as session:
            await session.execute(delete(Tick))
        return await service.sweep(self.db, self.broker, self.redis, period_seconds=5.0, resend_seconds=resend_seconds)

    async def messages(self) -> int:
        return sum([await self.redis.llen(name) for name in QUEUES])


@pytest.fixture(scope="session")
async def own_database(settings: Settings, worker_id: str) -> AsyncIterator[Database]:
    db = Database(await clone_database(f"jobs_{worker_id}_{secrets.token_hex(4)}"), pool_size=5, max_overflow=60)
    yield db
    await db.close()


@pytest.fixture
async def place(settings: Settings, own_database: Database, worker_id: str) -> AsyncIterator[Place]:
    server, _, number = settings.redis_url.rpartition("/")
    redis_url = f"{server}/{int(number) + 7}"
    redis = kit_redis.connect(redis_url)
    await redis.flushdb()
    async with own_database.transaction() as session:
        await session.execute(delete(User))
        await session.execute(delete(Tick))
        user = User(email=f"{secrets.token_hex(8)}@example.com", password_hash="!", name="Owner")
        session.add(user)
        await session.flush()
    broker = Broker(redis_url)
    ENDINGS.clear()
    yield Place(own_database, redis, redis_url, broker, EventLog(redis), user.id)
    broker.close()
    await redis.aclose()


def ended(place_row: Job) -> tuple[JobState, str | None]:
    return JobState(place_row.state), place_row.error_code
