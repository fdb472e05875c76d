"""Paid launches whose workers are killed again and again: each comes to its end once, and every book is right."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from backend.billing import auditing, orders, payments
from backend.billing.models import LedgerEntry, Order
from backend.contents.models import Chunk, Content
from backend.embedded import processes
from backend.jobs.events import EventLog
from backend.jobs.models import Job
from backend.kit import redis as kit_redis
from backend.kit.background import Background
from backend.kit.config import Settings
from backend.kit.mail import Mailer
from backend.kit.owner import Owner
from backend.launches import service
from backend.launches.tools import Tools
from backend.launches.wishes import Wish
from backend.projects.models import Project
from backend.providers.base_models import ModelLibrary
from backend.providers.huggingface import HubClient
from backend.training.models import FineTuning
from backend.users.models import User
from backend.users.recovery import Post
from tests.conftest import clone_database
from tests.contracts import tiny_llama
from tests.contracts.conftest import SAMPLE
from tests.faults.plant import Plant, patience
from tests.llm_server import LLMServer

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(not processes.LINUX, reason="finds a worker's processes in /proc"),
]
USERS, LAUNCHES = 3, 4
VICTIMS = ("llm", "first", "llm", "second", "beat", "llm")
CHARACTERS, FREE = 50_000, 10_000
MODEL = "tiny-llama-under-fire"


@pytest.fixture
def firing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Prices as in production, for this process and its workers; leases that run out soon."""
    tiny_llama.write(settings.models_path / MODEL, SAMPLE)
    monkeypatch.setattr(settings, "free_characters", FREE)
    monkeypatch.setattr(settings, "stripe_secret_key", SecretStr("sk_test_under_fire"))
    for name, value in {
        "FREE_CHARACTERS": str(FREE),
        "JOB_LEASE_SECONDS": "3",
        "JOB_HEARTBEAT_SECONDS": "0.5",
        "JOB_SWEEP_SECONDS": "1",
        "MODELS_DIR": str(settings.models_path),
    }.items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.fixture
async def plant(firing: Settings, tmp_path: Path) -> AsyncIterator[Plant]:
    database = await clone_database(f"faults_{secrets.token_hex(4)}")
    async with Plant(database, tmp_path / "plant", aof=True) as made:
        yield made


async def test_every_paid_launch_comes_to_its_end_once(
    plant: Plant, firing: Settings, llm_server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for a generation to be hit in its middle.
    monkeypatch.setattr(llm_server, "delay_seconds", 0.7)
    await paid_launches(plant, firing)
    for name in ("control", "first", "second", "llm", "beat"):
        plant.start(name)
    for victim in VICTIMS:
        await until_it_hurts(plant, victim)
        plant.kill(victim)
        plant.start(victim)
    for _ in patience(180):
        # A project trains one run at a time, on a worker that is not here.
        await end_trainings(plant)
        if not await plant.rows("SELECT 1 FROM orders WHERE ended_at IS NULL"):
            break
        await asyncio.sleep(0.5)
    assert await plant.rows("SELECT 1 FROM jobs WHERE attempts > 1"), "nothing was hit: the test proves nothing"
    await books_are_right(plant)


async def until_it_hurts(plant: Plant, victim: str) -> None:
    """Until the writing worker is in the middle of a dataset; the others are always busy."""
    for _ in patience(20):
        await asyncio.sleep(1)
        if victim != "llm" or await plant.rows(
            "SELECT 1 FROM jobs WHERE kind = 'dataset_generate' AND state = 'running'"
        ):
            return
    raise AssertionError(f"no dataset is made\n{plant.logs()}")


async def paid_launches(plant: Plant, settings: Settings) -> None:
    """Launches of several users, each with a project; all are paid, and none has begun."""
    redis = kit_redis.connect(plant.valkey.url())
    library = ModelLibrary(settings.models_path, HubClient(settings.hf_endpoint, "", timeout_seconds=5))
    post = Post(Mailer(settings), Background(), settings.frontend_url)
    tools = Tools(plant.db, settings, plant.broker, EventLog(redis), library, post)
    numbers = []
    for _ in range(USERS):
        async with plant.db.transaction() as session:
            user = User(email=f"{secrets.token_hex(8)}@example.com", password_hash="!", name="Owner")
            session.add(user)
            await session.flush()
            project = Project(user_id=user.id, name="Lamps", config={"num_examples_target": 4})
            session.add(project)
            await session.flush()
        for _ in range(LAUNCHES):
            async with plant.db.transaction() as session:
                content = await add_content(session, project.id)
                wish = Wish(
                    content_ids=[content], dataset_name="Lamps", job_name="Lamps", provider="local", model=MODEL
                )
                owner = Owner(user.id, user.public_id)
                numbers.append((await service.launch(session, tools, owner, project.id, wish, orders.LAUNCH)).id)
    for number in numbers:
        async with plant.db.transaction() as session:
            order = await orders.lock(session, number)
            assert order is not None
            paid = {
                "id": f"cs_{order.public_id}",
                "payment_intent": f"pi_{order.public_id}",
                "amount_total": order.amount_cents,
                "currency": order.currency,
            }
            assert await payments.land(session, order, paid)
    await redis.aclose()


async def add_content(session: Any, project: int) -> int:
    name = secrets.token_hex(6)
    content = Content(
        project_id=project,
        kind="raw_doc",
        type="text",
        name=f"{name}.txt",
        mime_type="text/plain",
        size_bytes=CHARACTERS,
        sha256="0" * 64,
        status="ready",
        character_count=CHARACTERS,
        file_key=f"planted/{name}",
        text_key=f"planted/{name}-text",
    )
    session.add(content)
    await session.flush()
    for index in range(3):
        text = " ".join(f"Lamp {name} of room {index}{number} has {number * 7} lumens." for number in range(12))
        session.add(
            Chunk(project_id=project, content_id=content.id, chunk_index=index, text=text, token_count=len(text) // 4)
        )
    return int(content.id)


async def end_trainings(plant: Plant) -> None:
    """As if a gpu worker had done all that waits for one."""
    async with plant.db.transaction() as session:
        waiting = select(Job).where(Job.kind == "training", Job.state == "queued").with_for_update()
        for job in (await session.scalars(waiting)).all():
            job.state = "success"
            await session.execute(update(FineTuning).where(FineTuning.job_id == job.id).values(status="completed"))


async def books_are_right(plant: Plant) -> None:
    """Each launch counted on the free quota, which is there once: it covers three of four, and the last is credited."""
    done = USERS * (LAUNCHES - 1)
    async with plant.db.transaction() as session:
        rows = await session.execute(select(LedgerEntry.kind, LedgerEntry.characters).order_by(LedgerEntry.id))
        entries = [(row.kind, row.characters) for row in rows]
        states = (await session.execute(select(Order.state, Order.error_code))).all()
    by_state = Counter((state, code) for state, code in states)
    assert by_state == {(orders.COMPLETED, None): done, (orders.CREDITED, "INSUFFICIENT_CHARACTERS"): USERS}, (
        plant.logs()
    )
    assert Counter(entries) == {
        ("grant", FREE): USERS,
        ("purchase", CHARACTERS - FREE): USERS * LAUNCHES,
        ("usage", -CHARACTERS): done,
    }
    for table in ("datasets", "fine_tunings", "holds"):
        assert [tuple(row) for row in await plant.rows(f"SELECT count(*) FROM {table}")] == [(done,)]
    assert await plant.rows("SELECT 1 FROM holds WHERE state <> 'settled'") == []
    assert (await auditing.verify(plant.db)).differences == ()
