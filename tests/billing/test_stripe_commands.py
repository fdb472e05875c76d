"""`finetuneflow admin stripe ...` and `admin refund`, as whoever runs the service types them."""

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import select

from backend.billing.models import Payment
from backend.kit.config import Settings
from backend.kit.db import Database
from tests.billing.conftest import MakeOrder
from tests.billing.stripe_events import completed, event, intent_of, refunded, session_of
from tests.billing.stripe_server import StripeServer
from tests.billing.test_inbox import books, take


async def finetuneflow(settings: Settings, *words: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command with the settings of the tests; its environment has them."""
    environment = {
        "STRIPE_SECRET_KEY": settings.stripe_secret_key.get_secret_value(),
        "STRIPE_API_BASE": settings.stripe_api_base,
        "COLUMNS": "200",
    }

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "backend.cli", "admin", *words],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=60,
        )

    return await asyncio.to_thread(run)


async def test_what_was_given_up_is_listed_and_replayed(
    db: Database, paying: Settings, settings: Settings, make_order: MakeOrder
) -> None:
    order = await make_order()
    wrong = event("checkout.session.completed", session_of(order, amount_total=1))
    early = refunded(await make_order(), 100)
    await take(db, settings, wrong, early)
    listed = await finetuneflow(paying, "stripe", "events")
    assert wrong["id"] in listed.stdout, listed.stderr
    assert "was paid with 1 eur" in listed.stdout
    assert early["id"] not in listed.stdout
    parked = await finetuneflow(paying, "stripe", "events", "--state", "parked")
    assert early["id"] in parked.stdout
    again = await finetuneflow(paying, "stripe", "replay", wrong["id"])
    assert (again.returncode, again.stdout) == (2, "1 events were handled again, 0 of them to the end.\n")
    nothing = await finetuneflow(paying, "stripe", "replay", "evt_unknown")
    assert nothing.returncode == 2


async def test_a_refund_and_its_limits(
    db: Database, paying: Settings, settings: Settings, stripe_server: StripeServer, make_order: MakeOrder
) -> None:
    order = await make_order()
    await take(db, settings, completed(order))
    async with db.transaction() as session:
        number = await session.scalar(select(Payment.id).where(Payment.order_id == order.id))
    done = await finetuneflow(paying, "refund", str(number), "--cents", "65")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Stripe has taken the refund as re_")
    assert stripe_server.told("/v1/refunds") == [{"payment_intent": intent_of(order), "amount": "65"}]
    too_much = await finetuneflow(paying, "refund", str(number), "--cents", "366")
    assert too_much.returncode == 2
    assert "365 cents can be given back" in too_much.stderr
    nobody = await finetuneflow(settings, "refund", str(number))
    assert (nobody.returncode, "STRIPE_SECRET_KEY is not set" in nobody.stderr) == (2, True)


async def test_a_comparison_fetches_and_tells(
    db: Database, paying: Settings, stripe_server: StripeServer, make_order: MakeOrder
) -> None:
    order, lost = await make_order(), await make_order()
    sent = completed(order)
    sent["created"] -= 3600
    stripe_server.events = [sent]
    found: dict[str, Any] = {"status": "succeeded", "currency": "eur", "created": sent["created"]}
    stripe_server.intents = [
        {**found, "id": intent_of(one), "amount_received": 365, "metadata": {"order_id": str(one.public_id)}}
        for one in (order, lost)
    ]
    done = await finetuneflow(paying, "stripe", "reconcile")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("1 events and 2 payments at Stripe; 1 had not come.")
    assert intent_of(lost) in done.stdout
    assert intent_of(order) not in done.stdout
    assert (await books(db, order))["posted"] == 10_000


@pytest.mark.parametrize(
    "words", [["stripe", "reconcile", "--days", "30"], ["refund", "x"], ["stripe", "events", "--limit", "0"]]
)
async def test_wrong_words(settings: Settings, words: list[str]) -> None:
    assert (await finetuneflow(settings, *words)).returncode == 2
