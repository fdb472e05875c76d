"""A tenant with a project, prices as they are in production, Stripe imitated, and launches taken step by step."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from backend.api.platform.fine_tuning_jobs import tools_of
from backend.billing import auditing, ledger, orders, payments
from backend.billing.models import Hold, LedgerEntry, Order
from backend.contents.models import Chunk, Content
from backend.datasets.models import Dataset
from backend.jobs.models import Job
from backend.jobs.states import LIVE
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.launches import advancing
from backend.launches.tools import Tools
from backend.projects.models import Project
from backend.providers.stripe import Stripe
from backend.training import fine_tunings
from backend.training.models import FineTuning
from backend.users.models import User
from tests.conftest import Tenant
from tests.contracts import tiny_llama
from tests.contracts.conftest import SAMPLE
from tests.launches.stripe_server import StripeServer

RunJob = Callable[[str], Awaitable[dict[str, Any]]]
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def base_model(settings: Settings) -> str:
    """Of a name of its own, because other tests write theirs into the same folder."""
    name = "tiny-llama-of-launches"
    tiny_llama.write(settings.models_path / name, SAMPLE)
    return name


@pytest.fixture
def day_of_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day on which all of the providers still train."""
    monkeypatch.setattr(fine_tunings, "today", lambda: date(2026, 11, 22))


@pytest.fixture
def stripe_server() -> Iterator[StripeServer]:
    server = StripeServer()
    yield server
    server.stop()


@pytest.fixture
def prices(app: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """10,000 characters are free, once; 20,000 more each month where they are few."""
    monkeypatch.setattr(settings, "free_characters", 10_000)
    services = app.state.services
    monkeypatch.setattr(services, "post", replace(services.post, frontend_url="https://app.example.com"))
    return settings


@pytest.fixture
async def stripe(
    app: Any, prices: Settings, stripe_server: StripeServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StripeServer]:
    """Payments are on."""
    monkeypatch.setattr(prices, "stripe_secret_key", SecretStr("sk_test_launches"))
    monkeypatch.setattr(prices, "stripe_api_base", stripe_server.url)
    opened = Stripe(prices)
    monkeypatch.setattr(app.state.services, "stripe", opened)
    yield stripe_server
    await opened.close()


@dataclass
class Yard:
    """One tenant's launches; `project` and `user` are numbers."""

    app: Any
    db: Database
    tenant: Tenant
    project: int
    user: int
    run_jobs: RunJob
    base: str
    contents: list[int] = field(default_factory=list)

    @property
    def tools(self) -> Tools:
        return tools_of(self.app.state.services)

    async def add_content(self, characters: int, *, status: str = "ready", project: int | None = None) -> int:
        """A document with one chunk, as if it had been read; returns its number."""
        number = next(_numbers)
        is_read = status == "ready"
        async with self.db.transaction() as session:
            content = Content(
                project_id=project or self.project,
                kind="raw_doc",
                type="text",
                name=f"lamp-{number}.txt",
                mime_type="text/plain",
                size_bytes=characters,
                sha256=f"{number:064d}",
                status=status,
                character_count=characters if is_read else 0,
                file_key=f"planted/{number}",
                text_key=f"planted/{number}-text" if is_read else None,
            )
            session.add(content)
            await session.flush()
            if is_read:
                await _chunk(session, content)
        self.contents.append(content.id)
        return content.id

    async def read(self, content: int, characters: int) -> None:
        """The content gets its text."""
        async with self.db.transaction() as session:
            row = await session.get_one(Content, content)
            row.status, row.character_count, row.text_key = "ready", characters, f"{row.file_key}-text"
            await _chunk(session, row)

    def body(self, *contents: int, **config: Any) -> dict[str, Any]:
        config = {
            "provider": "local",
            "model": self.base,
            "method": "lora",
            "job_name": "Mon Job de Test",
            "dataset_name": "Dataset pour Job Test",
            **config,
        }
        return {"project_id": self.project, "content_ids": list(contents), "config": config}

    async def post(self, *contents: int, headers: dict[str, str] | None = None, **config: Any) -> httpx.Response:
        return await self.tenant.client.post(
            "/api/fine-tuning-jobs", json=self.body(*contents, **config), headers=headers
        )

    async def launch(self, *contents: int, **config: Any) -> dict[str, Any]:
        answer = await self.post(*contents, **config)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def order(self, number: int) -> dict[str, Any]:
        """The receipt, in English."""
        answer = await self.tenant.client.get(f"/api/orders/{number}", headers={"Accept-Language": "en"})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def pay(self, number: int) -> bool:
        """What the webhook of a paid session does."""
        async with self.db.transaction() as session:
            order = await orders.lock(session, number)
            assert order is not None
            return await payments.land(session, order, paid_session(order))

    async def advance(self, *numbers: int) -> None:
        """Takes orders further, whenever they were to be looked at again."""
        await self.due(*numbers)
        for number in numbers:
            await advancing.advance(self.tools, number)

    async def due(self, *numbers: int) -> None:
        async with self.db.transaction() as session:
            waiting = (Order.id.in_(numbers), Order.next_step_at.is_not(None))
            await session.execute(update(Order).where(*waiting).values(next_step_at=datetime.now(UTC)))

    async def jobs(self, *kinds: str) -> list[Job]:
        """The live jobs of the tenant, oldest first."""
        async with self.db.transaction() as session:
            mine = select(Job).where(Job.user_id == self.user, Job.state.in_(LIVE)).order_by(Job.id)
            found = (await session.scalars(mine)).all()
        return [job for job in found if not kinds or job.kind in kinds]

    async def make_dataset(self) -> dict[str, Any]:
        """Runs the jobs of the dataset whose turn it is; returns the last one."""
        ended: dict[str, Any] = {}
        while jobs := await self.jobs("dataset_prepare", "dataset_generate"):
            ended = await self.run_jobs(str(jobs[0].public_id))
        return ended

    async def end_run(self, number: int, status: str = "completed", message: str | None = None) -> None:
        """As if its worker had ended it."""
        async with self.db.transaction() as session:
            run = await session.get_one(FineTuning, number)
            assert run.job_id is not None
            await session.execute(update(Job).where(Job.id == run.job_id).values(state="success"))
            run.status, run.error_message = status, message

    async def row(self, number: int) -> Order:
        async with self.db.transaction() as session:
            return await session.get_one(Order, number)

    async def run_of(self, number: int) -> FineTuning:
        async with self.db.transaction() as session:
            return await session.get_one(FineTuning, (await session.get_one(Order, number)).fine_tuning_id)

    async def dataset_of(self, number: int) -> Dataset:
        async with self.db.transaction() as session:
            return await session.get_one(Dataset, (await session.get_one(Order, number)).dataset_id)

    async def buy(self, characters: int) -> None:
        async with self.db.transaction() as session:
            await ledger.credit(
                session,
                user_id=self.user,
                kind=ledger.PURCHASE,
                characters=characters,
                reference=f"test:{self.user}:{next(_numbers)}",
                params={},
            )

    async def balance(self) -> ledger.Balance:
        async with self.db.transaction() as session:
            return await ledger.balance(session, self.user)

    async def entries(self) -> list[tuple[str, int]]:
        async with self.db.transaction() as session:
            rows = await session.execute(
                select(LedgerEntry.kind, LedgerEntry.characters)
                .where(LedgerEntry.user_id == self.user)
                .order_by(LedgerEntry.id)
            )
            return [(row.kind, row.characters) for row in rows]

    async def live_holds(self) -> list[int]:
        async with self.db.transaction() as session:
            mine = select(Hold.characters).where(Hold.user_id == self.user, Hold.state == "held")
            return list((await session.scalars(mine)).all())

    async def books_are_right(self) -> None:
        """Everything that the hourly check looks at."""
        assert self.user not in (await auditing.verify(self.db)).users


async def _chunk(session: Any, content: Content) -> None:
    text = " ".join(f"Lamp {content.id} of room {number} shines with {number * 7} lumens." for number in range(12))
    session.add(
        Chunk(
            project_id=content.project_id,
            content_id=content.id,
            chunk_index=0,
            text=text,
            token_count=len(text) // 4,
        )
    )


def paid_session(order: Order) -> dict[str, Any]:
    return {
        "id": order.stripe_session_id or f"cs_paid_{order.public_id}",
        "payment_intent": f"pi_{order.public_id}",
        "amount_total": order.amount_cents,
        "currency": order.currency,
        "payment_status": "paid",
    }


@pytest.fixture
async def make_yard(
    app: Any,
    db: Database,
    make_tenant: Callable[[], Awaitable[Tenant]],
    run_jobs: RunJob,
    base_model: str,
    prices: Settings,
) -> Callable[[], Awaitable[Yard]]:
    async def make() -> Yard:
        tenant = await make_tenant()
        project = await tenant.make_project(name="Lamps", config={"num_examples_target": 6})
        async with db.transaction() as session:
            row = (await session.scalars(select(Project).where(Project.public_id == UUID(project)))).one()
            user = (await session.scalars(select(User).where(User.email == tenant.email))).one()
        return Yard(app, db, tenant, row.id, user.id, run_jobs, base_model)

    return make


@pytest.fixture
async def yard(make_yard: Callable[[], Awaitable[Yard]]) -> Yard:
    return await make_yard()
