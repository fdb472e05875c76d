"""A tenant with a key at a provider, a dataset of forty pairs, and the provider's imitation behind the settings."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text, update

from backend.datasets.models import Dataset, Example
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.projects.models import Project
from backend.providers.tuning import registry
from backend.training import fine_tunings, polling
from backend.training.models import FineTuning
from backend.users import provider_keys
from backend.users.models import ProviderKey, User
from tests.conftest import Tenant
from tests.providers.tuning.conftest import ADAPTERS, BEDROCK_KEY, MODELS, SECRET
from tests.providers.tuning.imitation import Imitation

RunJob = Callable[[str], Awaitable[dict[str, Any]]]


async def plant_dataset(db: Database, project: str, *, train: int = 40, evaluated: int = 4) -> int:
    """A finished dataset of distinct pairs; returns its number."""
    async with db.transaction() as session:
        row = (await session.scalars(select(Project).where(Project.public_id == UUID(project)))).one()
        dataset = Dataset(project_id=row.id, name="Lamps", status="ready")
        session.add(dataset)
        await session.flush()
        for number in range(train + evaluated):
            session.add(
                Example(
                    dataset_id=dataset.id,
                    split="train" if number < train else "eval",
                    instruction=f"How bright is lamp {number}?",
                    output=f"It has {number} lumens.",
                    token_count=12,
                    fingerprint=str(number),
                )
            )
        return dataset.id


async def plant_key(app: Any, db: Database, tenant: Tenant, provider: str) -> None:
    """A sealed key, as if it had been added and the provider had been out of reach."""
    async with db.transaction() as session:
        user = (await session.scalars(select(User).where(User.email == tenant.email))).one()
        key = BEDROCK_KEY if provider == "bedrock" else SECRET
        sealed = app.state.services.sealer.seal(key, bound_to=provider_keys._binding(user.id, provider))
        session.add(
            ProviderKey(
                user_id=user.id, provider=provider, key_id=sealed.key_id, ciphertext=sealed.ciphertext, masked="..."
            )
        )


@dataclass
class Hosted:
    """Fine-tunings of one tenant at one provider, taken step by step."""

    name: str
    imitation: Imitation
    tenant: Tenant
    project: str
    dataset: int
    app: Any
    db: Database
    run_jobs: RunJob
    ids: list[int] = field(default_factory=list)

    @property
    def body(self) -> dict[str, Any]:
        return {
            "dataset_id": self.dataset,
            "name": "Lamp expert",
            "description": "Knows lamps",
            "model": MODELS[self.name],
            "provider": self.name,
            "hyperparameters": {"n_epochs": 2},
        }

    async def create(self, **changes: Any) -> dict[str, Any]:
        answer = await self.tenant.client.post("/api/fine-tunings", json={**self.body, **changes})
        assert answer.status_code == 201, answer.text
        self.ids.append(answer.json()["id"])
        found: dict[str, Any] = answer.json()
        return found

    async def show(self) -> dict[str, Any]:
        answer = await self.tenant.client.get(f"/api/fine-tunings/{self.ids[-1]}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def row(self) -> FineTuning:
        async with self.db.transaction() as session:
            return await session.get_one(FineTuning, self.ids[-1])

    async def submit(self) -> dict[str, Any]:
        """One attempt of the submission's job."""
        async with self.db.transaction() as session:
            run = await session.get_one(FineTuning, self.ids[-1])
            await session.execute(update(Job).where(Job.id == run.job_id).values(available_at=None))
            job = await session.get_one(Job, run.job_id)
        return await self.run_jobs(str(job.public_id))

    async def started(self) -> "Hosted":
        await self.create()
        assert (await self.submit())["state"] == "success"
        return self

    async def due(self) -> None:
        async with self.db.transaction() as session:
            await session.execute(
                text("UPDATE fine_tunings SET next_poll_at = now() WHERE id = :id AND next_poll_at IS NOT NULL"),
                {"id": self.ids[-1]},
            )

    async def poll(self) -> dict[str, Any]:
        """What the run is after the provider was asked once more."""
        await self.due()
        services = self.app.state.services
        await polling.poll_due(self.db, services.settings, services.sealer, services.events)
        return await self.show()


@pytest.fixture
def day_of_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day on which all of the providers still train."""
    monkeypatch.setattr(fine_tunings, "today", lambda: date(2026, 11, 22))


@pytest.fixture(params=list(ADAPTERS))
def provider_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def imitation(provider_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Imitation]:
    """The provider, reached by the real adapter with short timeouts."""
    kind, make = ADAPTERS[provider_name]
    server = kind()
    opened = registry.open_provider

    def open_provider(settings: Settings, name: str, key: str) -> Any:
        assert key == (BEDROCK_KEY if name == "bedrock" else SECRET), "the key is that of the tenant"
        return make(server.url) if name == provider_name else opened(settings, name, key)

    monkeypatch.setattr(registry, "open_provider", open_provider)
    yield server
    server.stop()


@pytest.fixture
async def hosted(
    app: Any,
    db: Database,
    tenant: Tenant,
    provider_name: str,
    imitation: Imitation,
    run_jobs: RunJob,
    day_of_the_catalogue: None,
) -> AsyncIterator[Hosted]:
    project = await tenant.make_project(name="Lamps")
    await plant_key(app, db, tenant, provider_name)
    yield Hosted(provider_name, imitation, tenant, project, await plant_dataset(db, project), app, db, run_jobs)
    async with db.transaction() as session:
        await session.execute(text("UPDATE fine_tunings SET next_poll_at = NULL"))
    await asyncio.sleep(0)
