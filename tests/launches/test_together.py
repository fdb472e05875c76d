"""Everything at once, in a random order: launches, payments, cancels and deletions leave no hold and no wrong book."""

import asyncio
import random
from typing import Any

import pytest
from sqlalchemy import select

from backend.billing import orders
from backend.billing.models import Order
from backend.launches import advancing
from tests.launches.conftest import Yard
from tests.launches.stripe_server import StripeServer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
ROUNDS, AT_ONCE = 6, 10


@pytest.mark.parametrize("seed", range(2))
async def test_no_order_is_left_behind(yard: Yard, stripe: StripeServer, seed: int) -> None:
    chance = random.Random(seed)
    projects = [yard.project]
    for _ in range(2):
        made = await yard.tenant.client.post("/api/projects", json={"name": "Another"})
        projects.append(made.json()["id"])
    contents = {
        project: [await yard.add_content(characters, project=project) for characters in (300, 4000, 30_000)]
        for project in projects
    }
    client = yard.tenant.client

    async def launch() -> int:
        project = chance.choice(projects)
        body = {**yard.body(chance.choice(contents[project])), "project_id": project}
        return (await client.post("/api/fine-tuning-jobs", json=body)).status_code

    async def with_some_order(act: str) -> int:
        mine = (await client.get("/api/orders", params={"limit": 30})).json()
        if not mine:
            return 200
        order = chance.choice(mine)
        if act == "pay" and order["state"] == orders.PENDING_PAYMENT:
            await yard.pay(order["id"])
        elif act == "cancel":
            return (await client.post(f"/api/orders/{order['id']}/cancel")).status_code
        elif act == "cancel run" and order["fine_tuning_id"]:
            return (await client.post(f"/api/fine-tunings/{order['fine_tuning_id']}/cancel")).status_code
        elif act == "advance":
            await yard.due(order["id"])
            await advancing.advance(yard.tools, order["id"])
        return 200

    async def delete_project() -> int:
        return (await client.delete(f"/api/projects/{chance.choice(projects)}")).status_code

    acts = ["launch"] * 4 + ["pay"] * 3 + ["advance"] * 6 + ["cancel", "cancel run"]
    for turn in range(ROUNDS):
        chosen = [chance.choice(acts) for _ in range(AT_ONCE)]
        if turn == ROUNDS - 2:
            chosen.append("delete")
        answers: list[int] = await asyncio.gather(
            *[
                launch() if act == "launch" else delete_project() if act == "delete" else with_some_order(act)
                for act in chosen
            ]
        )
        # 503: two were in each other's way, and one of them is to be repeated.
        assert {status for status in answers if status >= 500} <= {503}, list(zip(chosen, answers, strict=True))
    await come_to_rest(yard)
    assert await yard.live_holds() == []
    await yard.books_are_right()


async def come_to_rest(yard: Yard) -> None:
    """All that is left does its work, or is cancelled where nobody paid."""
    for _ in range(60):
        async with yard.db.transaction() as session:
            live = (
                await session.scalars(
                    select(Order).where(Order.user_id == yard.user, Order.state.in_(orders.LIVE)).order_by(Order.id)
                )
            ).all()
        if not live:
            return
        for order in live:
            await come_closer(yard, order)
        await yard.make_dataset()
        for job in await yard.jobs("training"):
            await yard.end_run(int(job.params["fine_tuning_id"]))
    raise AssertionError([(order.id, order.state, order.error_code) for order in live])


async def come_closer(yard: Yard, order: Any) -> None:
    if order.state == orders.PENDING_PAYMENT:
        await yard.tenant.client.post(f"/api/orders/{order.id}/cancel")
    else:
        await yard.advance(order.id)
