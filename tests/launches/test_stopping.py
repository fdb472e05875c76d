"""Launches that do not come to their goal: failed, cancelled and deleted in the middle; nothing stays held."""

from typing import Any

import pytest
from sqlalchemy import delete, select, update

from backend.billing import ledger
from backend.billing.models import Hold, Order
from backend.contents.models import Content
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.launches import advancing, steps
from backend.training.models import FineTuning
from tests.launches.conftest import Yard
from tests.launches.stripe_server import StripeServer
from tests.llm_server import LLMServer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


async def paid(yard: Yard) -> dict[str, Any]:
    """A launch of 50,000 characters, of which 40,000 were paid, that runs."""
    launched = await yard.launch(await yard.add_content(50_000))
    assert await yard.pay(launched["order_id"])
    await yard.advance(launched["order_id"])
    assert (await yard.order(launched["order_id"]))["held"] == 50_000
    return launched


async def test_a_dataset_that_cannot_be_made_costs_nothing(
    yard: Yard, stripe: StripeServer, llm_server: LLMServer
) -> None:
    order = (await paid(yard))["order_id"]
    llm_server.mode = "garbage"
    try:
        assert (await yard.make_dataset())["state"] == "failed"
    finally:
        llm_server.mode = "good"
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["settled"], shown["released"]) == ("credited", 0, 50_000)
    assert shown["error_code"] == "NOTHING_GENERATED"
    run = await yard.run_of(order)
    assert (run.status, run.error_message) == ("error", shown["error_message"])
    assert (await yard.balance()).available == 50_000
    await yard.books_are_right()


async def test_a_fine_tuning_that_fails_leaves_its_dataset(yard: Yard, stripe: StripeServer) -> None:
    launched = await paid(yard)
    order = launched["order_id"]
    await yard.make_dataset()
    await yard.advance(order)
    await yard.end_run(launched["fine_tuning_id"] or (await yard.run_of(order)).id, "error", "Out of memory.")
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["error_code"], shown["settled"]) == ("failed", "LAUNCH_RUN_FAILED", 50_000)
    assert "Out of memory." in shown["error_message"]
    body = {"dataset_id": shown["dataset_id"], "name": "Again", "model": yard.base, "provider": "local"}
    again = await yard.tenant.client.post("/api/fine-tunings", json=body)
    assert again.status_code == 201, again.text
    assert (await yard.balance()).available == 0
    await yard.books_are_right()


async def test_a_dataset_too_small_for_the_provider(
    yard: Yard, app: Any, day_of_the_catalogue: None, stripe: StripeServer
) -> None:
    from tests.training.conftest import plant_key

    await plant_key(app, yard.db, yard.tenant, "openai")
    content = await yard.add_content(2000)
    launched = await yard.launch(content, provider="openai", model="gpt-4.1-mini-2025-04-14")
    order = launched["order_id"]
    await yard.advance(order)
    await yard.make_dataset()
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["error_code"], shown["settled"]) == ("failed", "DATASET_TOO_SMALL", 2000)
    assert (await yard.run_of(order)).status == "error"
    # A project whose run waits for its dataset is not shown as training.
    assert (await yard.dataset_of(order)).status == "ready"


async def test_cancelling_an_order_that_runs(yard: Yard, stripe: StripeServer) -> None:
    order = (await paid(yard))["order_id"]
    [job] = await yard.jobs("dataset_generate")
    answer = await yard.tenant.client.post(f"/api/orders/{order}/cancel", headers={"Accept-Language": "en"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["state"], answer.json()["error_code"]) == ("credited", "ORDER_CANCELLED")
    async with yard.db.transaction() as session:
        assert (await session.get_one(Job, job.id)).state == "cancelled"
    assert (await yard.run_of(order)).status == "cancelled"
    assert (await yard.balance()).available == 50_000
    again = await yard.tenant.client.post(f"/api/orders/{order}/cancel")
    assert (again.status_code, again.json()["state"]) == (200, "credited")
    await yard.books_are_right()


async def test_a_worker_that_is_in_the_middle_is_waited_for(yard: Yard, stripe: StripeServer) -> None:
    order = (await paid(yard))["order_id"]
    [job] = await yard.jobs("dataset_generate")
    async with yard.db.transaction() as session:
        await session.execute(update(Job).where(Job.id == job.id).values(state="running"))
    answer = await yard.tenant.client.post(f"/api/orders/{order}/cancel")
    assert (answer.json()["state"], answer.json()["held"]) == ("running", 50_000)
    async with yard.db.transaction() as session:
        row = await session.get_one(Job, job.id)
        assert row.cancel_requested_at is not None
        row.state = "cancelled"
    await yard.advance(order)
    assert (await yard.order(order))["state"] == "credited"
    assert await yard.live_holds() == []


async def test_cancelling_an_order_that_trains(yard: Yard, stripe: StripeServer) -> None:
    order = (await paid(yard))["order_id"]
    await yard.make_dataset()
    await yard.advance(order)
    answer = await yard.tenant.client.post(f"/api/orders/{order}/cancel")
    assert (answer.json()["state"], answer.json()["settled"]) == ("failed", 50_000)
    assert "un jeu de données déjà prêt est conservé" in answer.json()["error_message"]
    assert ((await yard.run_of(order)).status, (await yard.dataset_of(order)).status) == ("cancelled", "ready")
    assert await yard.jobs() == []
    await yard.books_are_right()


async def test_the_studio_does_not_fill_a_dataset_that_waits(yard: Yard, prices: Settings) -> None:
    launched = await yard.launch(await yard.add_content(2000))
    [project] = (await yard.tenant.client.get("/projects")).json()["items"]
    answer = await yard.tenant.client.post(f"/projects/{project['id']}/dataset/generate")
    assert answer.status_code == 202, answer.text
    await yard.advance(launched["order_id"])
    [own] = await yard.jobs("dataset_generate")
    assert own.params["dataset_id"] != launched["dataset_id"]
    await yard.make_dataset()
    await yard.advance(launched["order_id"])
    [ours] = await yard.jobs("dataset_generate")
    assert ours.params["dataset_id"] == launched["dataset_id"]
    await yard.make_dataset()
    assert (await yard.order(launched["order_id"]))["settled"] == 2000
    await yard.books_are_right()


async def test_cancelling_the_planned_fine_tuning_cancels_the_order(yard: Yard) -> None:
    launched = await yard.launch(await yard.add_content(3000))
    order, run = launched["order_id"], launched["fine_tuning_id"]
    await yard.advance(order)
    [job] = await yard.jobs()
    path = f"/api/fine-tunings/{run}"
    answer = await yard.tenant.client.post(f"{path}/cancel", json={"reason": "Trop cher"})
    assert (answer.json()["status"], answer.json()["error_message"]) == ("cancelled", "Trop cher"), answer.text
    assert answer.json()["is_settled"]
    async with yard.db.transaction() as session:
        assert (await session.get_one(Job, job.id)).state == "cancelled"
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["error_code"], shown["held"]) == ("failed", "LAUNCH_RUN_CANCELLED", 0)
    retrained = await yard.tenant.client.post(f"{path}/retrain")
    assert (retrained.status_code, retrained.json()["error_code"]) == (400, "DATASET_NOT_READY")
    assert (await yard.tenant.client.delete(path)).status_code == 204
    await yard.books_are_right()


async def test_a_planned_fine_tuning_as_the_faces_show_it(yard: Yard, settings: Settings) -> None:
    launched = await yard.launch(await yard.add_content(3000))
    await yard.advance(launched["order_id"])
    listed = (await yard.tenant.client.get("/api/fine-tunings")).json()
    assert [(run["id"], run["status"], run["dataset_version"]) for run in listed] == [
        (launched["fine_tuning_id"], "queued", None)
    ]
    refused = await yard.tenant.client.delete(f"/api/datasets/{launched['dataset_id']}")
    assert refused.json()["error_code"] == "DATASET_IN_USE"
    [project] = (await yard.tenant.client.get("/projects")).json()["items"]
    assert project["status"] == "generating"
    status = await yard.tenant.client.get(f"/projects/{project['id']}/train/status")
    assert status.json()["error_code"] == "NO_TRAINING_RUN"
    deleted = await yard.tenant.client.delete(f"/api/fine-tunings/{launched['fine_tuning_id']}")
    assert deleted.status_code == 204
    await yard.advance(launched["order_id"])
    shown = await yard.order(launched["order_id"])
    assert (shown["state"], shown["fine_tuning_id"], shown["held"]) == ("failed", None, 0)
    assert (await yard.tenant.client.delete(f"/api/datasets/{launched['dataset_id']}")).status_code == 204


async def test_cancelling_before_the_payment(yard: Yard, stripe: StripeServer) -> None:
    order = (await yard.launch(await yard.add_content(50_000)))["order_id"]
    path = f"/api/orders/{order}/cancel"
    [page] = stripe.sessions.values()
    page["status"] = "complete"
    refused = await yard.tenant.client.post(path)
    assert (refused.status_code, refused.json()["error_code"]) == (409, "ORDER_BEING_PAID")
    page["status"] = "open"
    answer = await yard.tenant.client.post(path)
    assert (answer.json()["state"], page["status"]) == ("expired", "expired")
    assert (await yard.tenant.client.post(path)).json()["state"] == "expired"
    # Money that comes all the same stays on the balance, and starts nothing.
    assert await yard.pay(order)
    assert (await yard.order(order))["state"] == "credited"
    assert (await yard.balance()).available == 40_000


async def test_what_cannot_be_cancelled(yard: Yard, make_yard: Any) -> None:
    order = (await yard.launch(await yard.add_content(500)))["order_id"]
    other = await make_yard()
    assert (await other.tenant.client.post(f"/api/orders/{order}/cancel")).status_code == 404
    async with yard.db.transaction() as session:
        await session.execute(update(Order).where(Order.id == order).values(state="completed"))
    answer = await yard.tenant.client.post(f"/api/orders/{order}/cancel")
    assert (answer.status_code, answer.json()["error_code"]) == (409, "ORDER_ENDED")


@pytest.mark.parametrize("when", ["paid", "begun", "making", "ready"])
async def test_a_project_deleted_on_the_way(yard: Yard, stripe: StripeServer, when: str) -> None:
    order = (await yard.launch(await yard.add_content(50_000)))["order_id"]
    assert await yard.pay(order)
    if when == "begun":
        await one_step(yard, order)
    elif when in ("making", "ready"):
        await yard.advance(order)
    if when == "ready":
        await yard.make_dataset()
    assert (await yard.tenant.client.delete(f"/api/projects/{yard.project}")).status_code == 204
    await yard.advance(order)
    shown = await yard.order(order)
    ended = ("failed", 50_000) if when == "ready" else ("credited", 0)
    assert (shown["state"], shown["settled"]) == ended
    assert (shown["error_code"], shown["held"]) == ("LAUNCH_LOST_PROJECT", 0)
    # The free quota is not claimed before the work begins.
    quota = 0 if when == "paid" else 10_000
    assert (await yard.balance()).available == 40_000 + quota - ended[1]
    assert await yard.live_holds() == []
    await yard.books_are_right()


async def test_contents_deleted_after_the_payment(yard: Yard, stripe: StripeServer) -> None:
    content = await yard.add_content(50_000)
    order = (await yard.launch(content))["order_id"]
    await yard.pay(order)
    await one_step(yard, order)
    async with yard.db.transaction() as session:
        await session.execute(delete(Content).where(Content.id == content))
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["error_code"]) == ("credited", "LAUNCH_LOST_CONTENTS")
    assert str(content) in shown["error_message"]
    await yard.books_are_right()


async def test_an_account_deleted_on_the_way(yard: Yard, stripe: StripeServer) -> None:
    order = (await paid(yard))["order_id"]
    body = {"password": yard.tenant.password}
    gone = await yard.tenant.client.request("DELETE", "/api/users/me", json=body)
    assert gone.status_code == 204, gone.text
    await advancing.advance(yard.tools, order)
    async with yard.db.transaction() as session:
        assert await session.get(Order, order) is None
        states = (await session.scalars(select(Hold.state).where(Hold.user_id == yard.user))).all()
    assert states == ["released"]
    await yard.books_are_right()


async def test_the_plan_is_full_by_the_time_of_the_payment(
    yard: Yard, stripe: StripeServer, prices: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices, "plans", {"Free": {"max_fine_tunings": 1}})
    order = (await yard.launch(await yard.add_content(50_000)))["order_id"]
    other = await yard.launch(await yard.add_content(100))
    assert other["status"] == "processing_started"
    assert (await yard.post(await yard.add_content(100))).json()["error_code"] == "PLAN_LIMIT_REACHED"
    await yard.pay(order)
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["error_code"]) == ("credited", "PLAN_LIMIT_REACHED")
    assert (await yard.balance()).posted == 50_000


async def test_an_error_of_ours_is_tried_again_and_given_up_at_last(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = (await yard.launch(await yard.add_content(700)))["order_id"]

    async def broken(*_: Any) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patched:
        patched.setattr(steps, "forward", broken)
        await yard.advance(order)
        row = await yard.row(order)
        assert (row.state, row.step_failures) == ("running", 1)
        for _ in range(advancing.GIVE_UP - 1):
            await yard.advance(order)
    assert (await yard.row(order)).error_code == "LAUNCH_BROKEN"
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["held"]) == ("failed", 0)
    async with yard.db.transaction() as session:
        run = await session.get_one(FineTuning, shown["fine_tuning_id"])
        assert (run.status, (await ledger.balance(session, yard.user)).held) == ("error", 0)


async def one_step(yard: Yard, order: int) -> None:
    """Takes an order one step further, and no more."""
    await yard.due(order)
    async with yard.db.transaction() as session:
        row = await advancing._take(session, order)
        assert row is not None
        await advancing._step(session, yard.tools, row)
