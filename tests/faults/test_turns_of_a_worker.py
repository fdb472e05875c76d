"""A real worker of the shared queue runs the job whose turn it is, whatever the message was that woke it."""

import secrets
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from backend.jobs import queue
from backend.jobs.models import Job
from backend.jobs.states import JobState
from backend.kit.broker import Broker
from backend.users.models import User
from tests.conftest import clone_database
from tests.faults.plant import Plant, patience
from tests.faults.worker_app import LONG, SHORT

pytestmark = [pytest.mark.faults, pytest.mark.slow]


async def test_one_tenants_twenty_jobs_and_anothers_one(tmp_path: Path) -> None:
    async with Plant(await clone_database(f"turns_{secrets.token_hex(4)}"), tmp_path / "plant", aof=False) as plant:
        broker: Broker = plant.broker
        async with plant.db.transaction() as session:
            other = User(email=f"{secrets.token_hex(8)}@example.com", password_hash="!", name="Other")
            session.add(other)
            await session.flush()
            for _ in range(20):
                await queue.enqueue(
                    session, broker, LONG, user_id=plant.user_id, project_id=None, params={"seconds": 0.2}
                )
        async with plant.db.transaction() as session:
            last = await queue.enqueue(
                session, broker, SHORT, user_id=other.id, project_id=None, params={"seconds": 0.2}
            )
        plant.start("gpu")
        for _ in patience(90):
            async with plant.db.transaction() as session:
                done = await session.scalar(select(func.count()).where(Job.state == JobState.SUCCESS))
            if done == 21:
                break
        async with plant.db.transaction() as session:
            order = (await session.scalars(text("SELECT job_id FROM starts ORDER BY at"))).all()
            states = (await session.scalars(select(Job.state).distinct())).all()
        assert states == [JobState.SUCCESS]
        assert len(order) == len(set(order)) == 21, "each ran once"
        assert order.index(last.id) <= 1
