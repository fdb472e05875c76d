"""Processes that die between and within the steps of a launch: after the recovery the books are always the same."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing.models import Hold, Order
from backend.datasets.models import Dataset
from backend.jobs.models import Job
from backend.kit.db import Database
from backend.launches import advancing
from backend.training.models import FineTuning
from tests.launches.conftest import Yard
from tests.launches.stripe_server import StripeServer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Killed(BaseException):
    """As a process that is killed: nothing catches it, and nothing is tidied up."""


class Mortal(Database):
    """A database whose process dies at the commit with the given number, just before or just after it."""

    def __init__(self, db: Database, at: int, *, before: bool) -> None:
        self.engine, self._sessions = db.engine, db._sessions
        self._left, self._before = at, before

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        self._left -= 1
        dies = self._left == 0
        async with super().transaction() as session:
            yield session
            if dies and self._before:
                raise Killed()
        if dies:
            raise Killed()

    @property
    def is_alive(self) -> bool:
        return self._left > 0


async def whole_way(yard: Yard, order: int, advance: Callable[[], Any]) -> None:
    """From the payment to the model, everything that waits for somebody else done in between."""
    for _ in range(12):
        await yard.due(order)
        await advance()
        if (await yard.row(order)).state == "completed":
            return
        await yard.make_dataset()
        run = await yard.row(order)
        if run.fine_tuning_id is not None and await yard.jobs("training"):
            await yard.end_run(run.fine_tuning_id)
    raise AssertionError("the order does not end")


@pytest.mark.parametrize("before", [True, False], ids=["before the commit", "after the commit"])
@pytest.mark.parametrize("at", range(1, 8))
async def test_every_step_is_done_once_whenever_the_process_dies(
    yard: Yard, stripe: StripeServer, at: int, before: bool
) -> None:
    order = (await yard.launch(await yard.add_content(50_000)))["order_id"]
    assert await yard.pay(order)
    mortal = Mortal(yard.db, at, before=before)
    services = yard.tools

    async def advance() -> None:
        if mortal.is_alive:
            dying = type(services)(
                mortal, services.settings, services.broker, services.events, services.library, services.post
            )
            with _MayDie():
                await advancing.advance(dying, order)
        else:
            await advancing.advance(services, order)

    await whole_way(yard, order, advance)
    assert not mortal.is_alive, "nobody died: the test proves nothing"
    assert await yard.entries() == [("purchase", 40_000), ("grant", 10_000), ("usage", -50_000)]
    async with yard.db.transaction() as session:
        made = [
            await session.scalar(select(func.count()).select_from(table).where(condition))
            for table, condition in (
                (Dataset, Dataset.project_id == yard.project),
                (FineTuning, FineTuning.project_id == yard.project),
                (Hold, Hold.user_id == yard.user),
            )
        ]
        kinds = (await session.scalars(select(Job.kind).where(Job.user_id == yard.user).order_by(Job.id))).all()
        assert (await session.get_one(Order, order)).step_failures == 0
    assert made == [1, 1, 1]
    assert kinds == ["dataset_generate", "training"]
    assert await yard.live_holds() == []
    await yard.books_are_right()


class _MayDie:
    """The process may die within the block, or live on."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, *_: object) -> bool:
        return kind is Killed
