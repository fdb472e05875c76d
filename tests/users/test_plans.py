"""Which plan holds, and that nobody gets past its limits."""

import asyncio
from uuid import uuid4

import pytest
from pydantic import ValidationError

from backend.datasets.models import Dataset
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.projects.models import Project
from backend.training.models import FineTuning
from backend.users import plans
from backend.users.errors import PlanLimitReached
from backend.users.models import Subscription, User
from backend.users.service import seed_local_owner


async def user_with(db: Database, plan: str | None, status: str = "active") -> int:
    async with db.transaction() as session:
        user = User(email=f"{uuid4()}@example.com", password_hash="!", name="X")
        session.add(user)
        await session.flush()
        if plan is not None:
            session.add(Subscription(user_id=user.id, plan=plan, status=status))
        return user.id


@pytest.mark.parametrize(
    ("plan", "status", "holds"),
    [
        (None, "", "Free"),
        ("Small", "active", "Small"),
        ("Small", "trialing", "Small"),
        ("Small", "past_due", "Small"),
        ("Small", "canceled", "Free"),
        ("Small", "unpaid", "Free"),
        ("Small", "incomplete_expired", "Free"),
        ("A plan of old", "active", "Free"),
    ],
)
async def test_which_plan_holds(db: Database, plan: str | None, status: str, holds: str) -> None:
    user = await user_with(db, plan, status)
    async with db.transaction() as session:
        limits = await plans.limits_of(session, user)
    assert limits == (plans.Limits("Small", 2, 1) if holds == "Small" else plans.Limits("Free", None, None))


async def test_the_local_owner_has_no_limits(db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "plans", {"Free": {"max_projects": 0, "max_fine_tunings": 0}})
    async with db.transaction() as session:
        owner = await seed_local_owner(session)
        await plans.require_room_for_project(session, owner.id)
        await plans.require_room_for_fine_tuning(session, owner.id)
    user = await user_with(db, None)
    async with db.transaction() as session:
        with pytest.raises(PlanLimitReached, match="max_projects"):
            await plans.require_room_for_project(session, user)


async def start(db: Database, project: int, dataset: int, user: int, status: str) -> None:
    async with db.transaction() as session:
        await plans.require_room_for_fine_tuning(session, user)
        await asyncio.sleep(0.05)
        session.add(
            FineTuning(project_id=project, dataset_id=dataset, name="x", method="lora", model="m", status=status)
        )


async def test_simultaneous_fine_tunings_pass_one_by_one_and_failed_ones_do_not_count(db: Database) -> None:
    user = await user_with(db, "Small")
    async with db.transaction() as session:
        project = Project(user_id=user, name="x", config={})
        session.add(project)
        await session.flush()
        dataset = Dataset(project_id=project.id, name="x")
        session.add(dataset)
        await session.flush()
        ids = project.id, dataset.id
    for status in ("error", "cancelled"):
        await start(db, *ids, user, status)
    ended = await asyncio.gather(*[start(db, *ids, user, "queued") for _ in range(4)], return_exceptions=True)
    refused = [error for error in ended if error is not None]
    assert len(refused) == 3
    assert all(isinstance(error, PlanLimitReached) for error in refused)


def test_plans_are_a_setting_with_the_contracts_example_as_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLANS")
    found = Settings(_env_file=None).plans  # type: ignore[call-arg]
    assert found["Pro"] == {"max_projects": 10, "max_fine_tunings": 5}
    monkeypatch.setenv("PLANS", '{"Free": {"max_projects": null}, "Team": {"price_id": "price_1"}}')
    assert Settings().plans["Team"].get("max_projects") is None
    for wrong in ('{"Pro": {}}', '{"Free": {"max_projects": "many"}}', "[]"):
        monkeypatch.setenv("PLANS", wrong)
        with pytest.raises(ValidationError):
            Settings()
