"""A launch from its request to its model: free, paid, topped up, in turns, and what is refused before it begins."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from backend.billing import ledger
from backend.billing.models import LedgerEntry, Order
from backend.datasets.models import Example
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.launches import advancing, service
from backend.training import fine_tunings
from tests.launches.conftest import Yard, paid_session
from tests.launches.stripe_server import StripeServer

# Stripe's SDK speaks to httpx in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


async def test_a_free_launch_comes_to_its_model(yard: Yard) -> None:
    content = await yard.add_content(4000)
    launched = await yard.launch(content, system_prompt="You know lamps.")
    order = launched["order_id"]
    assert (await yard.run_of(order)).status == "queued"
    assert await yard.live_holds() == [4000]
    assert await yard.jobs() == []
    await yard.advance(order)
    assert [job.kind for job in await yard.jobs()] == ["dataset_generate"]
    assert (await yard.make_dataset())["state"] == "success"
    await yard.advance(order)
    run = await yard.run_of(order)
    assert (run.id, run.dataset_version, run.status) == (launched["fine_tuning_id"], 1, "queued")
    assert [job.kind for job in await yard.jobs()] == ["training"]
    async with yard.db.transaction() as session:
        histories = (await session.scalars(select(Example.history).where(Example.dataset_id == run.dataset_id))).all()
    assert histories
    assert all(history == [{"role": "system", "content": "You know lamps."}] for history in histories)
    await yard.end_run(run.id)
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["held"], shown["settled"], shown["released"]) == ("completed", 0, 4000, 0)
    assert (shown["dataset_id"], shown["fine_tuning_id"]) == (launched["dataset_id"], launched["fine_tuning_id"])
    assert await yard.entries() == [("grant", 10_000), ("usage", -4000)]
    await yard.books_are_right()


async def test_a_paid_launch_begins_once_it_is_paid(yard: Yard, stripe: StripeServer) -> None:
    content = await yard.add_content(50_000)
    launched = await yard.launch(content)
    assert launched["status"] == "pending_payment"
    order = launched["order_id"]
    # 40,000 characters beyond the free quota at 0.000365 each.
    assert (launched["quote"]["to_pay"], launched["quote"]["amount_cents"]) == (40_000, 1460)
    await yard.advance(order)
    assert await yard.row(order)
    assert await yard.pay(order)
    assert not await yard.pay(order)
    assert (await yard.order(order))["state"] == "paid"
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["held"], shown["payment"]["amount_cents"]) == ("running", 50_000, 1460)
    await yard.make_dataset()
    await yard.advance(order)
    await yard.end_run((await yard.run_of(order)).id)
    await yard.advance(order)
    assert (await yard.order(order))["state"] == "completed"
    assert await yard.entries() == [("purchase", 40_000), ("grant", 10_000), ("usage", -50_000)]
    assert (await yard.balance()).available == 0
    await yard.books_are_right()


async def test_contents_without_text_are_waited_for_and_held_once_known(yard: Yard) -> None:
    known, pending = await yard.add_content(1000), await yard.add_content(0, status="pending")
    launched = await yard.launch(known, pending)
    order = launched["order_id"]
    assert launched["quote"]["unknown_contents"] == [pending]
    await yard.advance(order)
    assert (await yard.jobs(), await yard.live_holds()) == ([], [1000])
    await yard.read(pending, 5000)
    await yard.advance(order)
    assert await yard.live_holds() == [6000]
    await yard.make_dataset()
    await yard.advance(order)
    assert (await yard.order(order))["settled"] == 6000
    await yard.books_are_right()


async def test_nothing_is_held_until_a_first_length_is_known(yard: Yard) -> None:
    pending = await yard.add_content(0, status="processing")
    order = (await yard.launch(pending))["order_id"]
    await yard.advance(order)
    assert await yard.live_holds() == []
    await yard.read(pending, 7000)
    await yard.advance(order)
    assert await yard.live_holds() == [7000]


async def test_a_text_that_turns_out_too_long_ends_a_free_launch(yard: Yard) -> None:
    pending = await yard.add_content(0, status="pending")
    order = (await yard.launch(pending))["order_id"]
    await yard.read(pending, 90_000)
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["error_code"], shown["held"]) == ("failed", "INSUFFICIENT_CHARACTERS", 0)
    assert (await yard.run_of(order)).status == "error"
    assert (await yard.dataset_of(order)).status == "error"
    assert await yard.entries() == []
    await yard.books_are_right()


async def test_who_has_to_pay_waits_for_the_lengths_first(yard: Yard, stripe: StripeServer) -> None:
    known, pending = await yard.add_content(50_000), await yard.add_content(0, status="pending")
    answer = await yard.post(known, pending)
    assert (answer.status_code, answer.json()["error_code"]) == (409, "CONTENT_LENGTH_UNKNOWN")
    assert answer.json()["context"]["content_ids"] == [pending]
    assert stripe.sessions == {}
    assert (await yard.tenant.client.get("/api/orders")).json() == []


async def test_a_content_that_never_gets_its_text(yard: Yard) -> None:
    pending = await yard.add_content(0, status="pending")
    order = (await yard.launch(pending))["order_id"]
    async with yard.db.transaction() as session:
        long_ago = datetime.now(UTC) - timedelta(hours=25)
        await session.execute(update(Order).where(Order.id == order).values(created_at=long_ago))
    await yard.advance(order)
    assert (await yard.order(order))["error_code"] == "LAUNCH_WAITED_TOO_LONG"


async def test_launches_of_one_project_take_turns(yard: Yard, settings: Settings) -> None:
    contents = [await yard.add_content(900) for _ in range(4)]
    answers = await asyncio.gather(*[yard.post(content) for content in contents])
    assert [answer.status_code for answer in answers] == [201] * 4
    numbers = [answer.json()["order_id"] for answer in answers]
    assert len({answer.json()["dataset_id"] for answer in answers}) == 4
    for _ in numbers:
        await yard.due(*numbers)
        await asyncio.gather(*[advancing.advance(yard.tools, number) for number in numbers])
        making = await yard.jobs("dataset_generate")
        assert len(making) == 1
        await yard.make_dataset()
    for _ in numbers:
        await yard.advance(*numbers)
        [training] = await yard.jobs("training")
        await yard.end_run(int(training.params["fine_tuning_id"]))
    await yard.advance(*numbers)
    assert [(await yard.order(number))["state"] for number in numbers] == ["completed"] * 4
    assert (await yard.balance()).used == 3600
    await yard.books_are_right()


async def test_the_free_quota_is_claimed_once_by_fifty_launches(yard: Yard, settings: Settings) -> None:
    content = await yard.add_content(1000)
    answers = await asyncio.gather(*[yard.post(content) for _ in range(50)])
    assert {answer.status_code for answer in answers} <= {201, 503}
    launched = [answer for answer in answers if answer.status_code == 201]
    # 10,000 that are free, and 20,000 that are given in a month.
    assert len(launched) == 30
    entries = await yard.entries()
    assert [entry for entry in entries if entry[0] == "grant"] == [("grant", 10_000)]
    assert sum(characters for kind, characters in entries if kind == "complimentary") == 20_000
    assert sum(await yard.live_holds()) == 30_000
    # Those that have to be paid, on an installation that takes no payments.
    assert {answer.json()["error_code"] for answer in answers if answer.status_code == 503} == {
        "PAYMENTS_NOT_CONFIGURED"
    }
    await yard.books_are_right()


async def test_tiny_launches_never_cost_less_than_the_cap_allows(
    yard: Yard, stripe: StripeServer, prices: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices, "free_characters", 100)
    monkeypatch.setattr(prices, "complimentary_characters_per_month", 250)
    content = await yard.add_content(50)
    free = 0
    while (launched := await yard.launch(content))["status"] == "processing_started":
        free += 1
    assert free == (100 + 250) // 50
    # The smallest checkout, and what it buys beyond the launch.
    assert (launched["quote"]["amount_cents"], launched["quote"]["characters_bought"]) == (60, 1643)
    await yard.pay(launched["order_id"])
    await yard.advance(launched["order_id"])
    assert (await yard.balance()).available == 1593


async def test_two_orders_that_counted_on_the_same_balance(yard: Yard, stripe: StripeServer) -> None:
    await yard.buy(20_000)
    content = await yard.add_content(60_000)
    first, second = await yard.launch(content), await yard.launch(content)
    assert first["quote"]["to_pay"] == second["quote"]["to_pay"] == 30_000
    for launched in (first, second):
        await yard.pay(launched["order_id"])
    await yard.advance(first["order_id"], second["order_id"])
    assert (await yard.order(first["order_id"]))["held"] == 60_000
    shown = await yard.order(second["order_id"])
    assert (shown["state"], shown["error_code"]) == ("credited", "INSUFFICIENT_CHARACTERS")
    assert (await yard.balance()).available == 30_000
    await yard.books_are_right()


async def test_what_is_refused_before_anything_is_written(
    yard: Yard,
    make_yard: Callable[[], Awaitable[Yard]],
    stripe: StripeServer,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
) -> None:
    other = await make_yard()
    foreign, own = await other.add_content(100), await yard.add_content(50_000)
    broken = await yard.add_content(0, status="error")
    elsewhere = (await yard.tenant.client.post("/api/projects", json={"name": "Other"})).json()["id"]
    apart = await yard.add_content(100, project=elsewhere)

    async def refused(*contents: int, **config: Any) -> tuple[int, str]:
        answer = await yard.post(*contents, **config)
        return answer.status_code, answer.json()["error_code"]

    assert await refused(foreign) == (404, "CONTENT_NOT_FOUND")
    assert await refused(own, apart) == (404, "CONTENT_NOT_FOUND")
    assert await refused(own, provider="openai", model="gpt-3.5-turbo") == (400, "MODEL_NOT_TRAINABLE")
    assert await refused(own, provider="together", model="Qwen/Qwen3-8B") == (401, "PROVIDER_KEY_MISSING")
    assert await refused(own, hyperparameters={"wings": 2}) == (400, "BAD_HYPERPARAMETER")
    assert await refused(own, broken) == (400, "CONTENT_NOT_READY")
    body = {**yard.body(own), "project_id": other.project}
    assert (await yard.tenant.client.post("/api/fine-tuning-jobs", json=body)).status_code == 404
    with monkeypatch.context() as small:
        small.setattr(settings, "plans", {"Free": {"max_fine_tunings": 0}})
        assert await refused(own) == (403, "PLAN_LIMIT_REACHED")
    async with yard.db.transaction() as session:
        assert await session.scalar(select(func.count()).where(Order.user_id == yard.user)) == 0
        assert await session.scalar(select(func.count()).where(LedgerEntry.user_id == yard.user)) == 0
    assert stripe.sessions == {}


async def test_the_same_key_launches_once(yard: Yard, stripe: StripeServer) -> None:
    headers = {"Idempotency-Key": "a launch"}
    small, large = await yard.add_content(500), await yard.add_content(50_000)
    first, again = [await yard.post(small, headers=headers) for _ in range(2)]
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await yard.post(large, headers=headers)).status_code == 422
    stripe.down = True
    headers = {"Idempotency-Key": "a paid launch"}
    assert (await yard.post(large, headers=headers)).json()["error_code"] == "PAYMENTS_UNAVAILABLE"
    stripe.down = False
    first, again = [await yard.post(large, headers=headers) for _ in range(2)]
    assert first.status_code == 201, first.text
    assert first.json() == again.json()
    assert first.json()["checkout_url"].startswith("https://checkout.stripe.com/pay/cs_test_")
    assert len(stripe.sessions) == 1
    listed = await yard.tenant.client.get("/api/orders")
    assert (len(listed.json()), listed.headers["X-Total-Count"]) == (2, "2")


async def test_the_model_closes_between_payment_and_launch(
    yard: Yard, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch, app: Any
) -> None:
    from tests.training.conftest import plant_key

    monkeypatch.setattr(fine_tunings, "today", lambda: date(2026, 9, 1))
    await plant_key(app, yard.db, yard.tenant, "openai")
    content = await yard.add_content(50_000)
    launched = await yard.launch(content, provider="openai", model="gpt-3.5-turbo-0125", hyperparameters={})
    assert any("2026" in warning for warning in launched["warnings"])
    await yard.pay(launched["order_id"])
    monkeypatch.setattr(fine_tunings, "today", lambda: date(2027, 3, 1))
    mails: list[Any] = []
    monkeypatch.setattr(type(yard.tools.post), "send_after_commit", lambda _, __, mail: mails.append(mail))
    await yard.advance(launched["order_id"])
    shown = await yard.order(launched["order_id"])
    assert (shown["state"], shown["error_code"]) == ("credited", "MODEL_NOT_TRAINABLE")
    assert (await yard.balance()).available == 40_000
    assert len(mails) == 1
    assert "40000" in mails[0].text
    await yard.books_are_right()


async def test_nobody_pays_within_a_day(yard: Yard, stripe: StripeServer) -> None:
    content = await yard.add_content(50_000)
    order = (await yard.launch(content))["order_id"]
    row = await yard.row(order)
    assert row.next_step_at is not None
    assert timedelta(hours=24) < row.next_step_at - row.created_at < timedelta(hours=26)
    await yard.advance(order)
    shown = await yard.order(order)
    assert (shown["state"], shown["error_code"], shown["payment"]["state"]) == (
        "expired",
        "CHECKOUT_TIMED_OUT",
        "expired",
    )
    french = await yard.tenant.client.get(f"/api/orders/{order}")
    assert french.json()["error_message"].startswith("La commande n'a pas été payée")
    # Stripe's word comes late, and is good all the same.
    assert await yard.pay(order)
    await yard.advance(order)
    assert (await yard.order(order))["state"] == "running"


async def test_a_tick_takes_what_is_due_and_runs_once_for_each_period(yard: Yard) -> None:
    order = (await yard.launch(await yard.add_content(500)))["order_id"]
    await yard.due(order)
    counts = await asyncio.gather(*[advancing.tick(yard.tools) for _ in range(5)])
    assert sum(count > 0 for count in counts) <= 1
    await yard.advance(order)
    async with yard.db.transaction() as session:
        made = await session.scalar(select(func.count()).where(Job.user_id == yard.user))
    assert made == 1
    assert service.ADVANCE == "launches.advance"
    assert paid_session(await yard.row(order))["amount_total"] == 0


async def test_who_owes_buys_what_is_owed_as_well(yard: Yard, stripe: StripeServer) -> None:
    """Else the payment would pay the debt first, and what was paid for could not begin."""
    await yard.buy(5_000)
    async with yard.db.transaction() as session:
        held = await ledger.hold(
            session, user_id=yard.user, characters=5_000, reference=f"owes:{yard.user}", purpose="generation"
        )
        await ledger.settle(session, held.id, 5_000)
        await ledger.take_back(
            session, user_id=yard.user, kind=ledger.CHARGEBACK, characters=5_000, reference=f"{yard.user}", params={}
        )
    assert (await yard.balance()).owed == 5_000
    launched = await yard.launch(await yard.add_content(60_000))
    quoted = launched["quote"]
    assert (quoted["from_free"], quoted["to_pay"], quoted["owed"]) == (10_000, 50_000, 5_000)
    assert (quoted["characters_bought"], quoted["amount_cents"]) == (55_000, 2_008)
    assert [line["kind"] for line in quoted["lines"]] == ["free_quota", "purchase", "owed"]
    await yard.pay(launched["order_id"])
    await yard.advance(launched["order_id"])
    shown = await yard.order(launched["order_id"])
    assert (shown["state"], shown["held"]) == ("running", 60_000)
    balance = await yard.balance()
    assert (balance.owed, balance.available) == (0, 0)
    await yard.books_are_right()
