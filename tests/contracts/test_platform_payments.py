"""The contract's payments over HTTP: a purchase from the request to the balance, plans, and what cannot be bought."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from backend.billing import inbox
from backend.billing.models import Order, Payment
from backend.kit.config import Settings
from backend.kit.db import Database
from tests.billing.conftest import door, paying, paying_app, stripe_server  # noqa: F401  (fixtures)
from tests.billing.stripe_events import completed, deliver, expired, subscription
from tests.billing.stripe_server import StripeServer
from tests.conftest import Tenant, registered
from tests.contracts.shapes import matches

PURCHASE = "/api/characters/purchase"


@pytest.fixture
async def buyer(paying_app: Any, door: httpx.AsyncClient) -> AsyncIterator[Tenant]:  # noqa: F811
    async with registered(paying_app, door) as tenant:
        yield tenant


async def order_of(db: Database, number: int) -> Order:
    async with db.transaction() as session:
        return await session.get_one(Order, number)


async def handle_all(db: Database, settings: Settings) -> None:
    """As the worker does it, without waiting for the message."""
    await inbox.handle_due(db, settings, at_once=True)


async def test_a_purchase_from_the_request_to_the_balance(
    buyer: Tenant,
    door: httpx.AsyncClient,  # noqa: F811
    stripe_server: StripeServer,  # noqa: F811
    settings: Settings,
    db: Database,
) -> None:
    answer = await buyer.client.post(PURCHASE, json={"character_count": 10_000})
    assert answer.status_code == 201, answer.text
    user = buyer.login["user"]["id"]
    matches(
        answer.json(),
        {
            "id": int,
            "user_id": user,
            "amount": 10_000,
            "description": "Achat en attente de 10000 caractères",
            "dataset_id": None,
            "payment_id": int,
            "price_per_character": 0.000365,
            "total_price": 3.65,
            "checkout_url": str,
        },
    )
    assert answer.json()["checkout_url"].startswith("https://checkout.stripe.com/")
    order = await order_of(db, answer.json()["id"])
    sent = stripe_server.told("/v1/checkout/sessions")[-1]
    expected = {
        "mode": "payment",
        "client_reference_id": str(order.public_id),
        "metadata[order_id]": str(order.public_id),
        "metadata[payment_type]": "character_credits",
        "metadata[user_id]": str(user),
        "payment_intent_data[metadata][order_id]": str(order.public_id),
        "payment_intent_data[receipt_email]": buyer.email,
        "line_items[0][quantity]": "1",
        "line_items[0][price_data][currency]": "eur",
        "line_items[0][price_data][unit_amount]": "365",
        "success_url": f"{settings.frontend_url}/dashboard/billing?checkout=success&order={order.public_id}"
        "&session_id={CHECKOUT_SESSION_ID}",
        "cancel_url": f"{settings.frontend_url}/dashboard/billing?checkout=cancelled&order={order.public_id}",
        "locale": "fr",
    }
    assert {name: sent.get(name) for name in expected} == expected
    keys = [headers.get("Idempotency-Key") for *_, headers in stripe_server.requests]
    assert f"{order.public_id}:checkout" in keys
    assert stripe_server.requests[-1][3]["Stripe-Version"] == "2026-10-28.endive"

    waiting = (await buyer.client.get("/api/billing/payments")).json()
    assert [(row["id"], row["status"], row["amount_cents"]) for row in waiting] == [
        (answer.json()["payment_id"], "pending", 365)
    ]
    assert (await deliver(door, completed(order))).json() == {"status": "success"}
    await handle_all(db, settings)
    paid = await buyer.client.get("/api/billing/payments")
    assert paid.headers["x-total-count"] == "1"
    assert [(row["status"], row["character_count"], row["order_id"]) for row in paid.json()] == [
        ("paid", 10_000, order.id)
    ]
    assert (await order_of(db, order.id)).state == "completed"


async def test_in_english(buyer: Tenant) -> None:
    answer = await buyer.client.post(PURCHASE, json={"character_count": 2000}, headers={"Accept-Language": "en"})
    assert answer.json()["description"] == "Pending purchase of 2000 characters"


async def test_one_customer_for_all_purchases(buyer: Tenant, stripe_server: StripeServer) -> None:  # noqa: F811
    for _ in range(3):
        assert (await buyer.client.post(PURCHASE, json={"character_count": 5000})).status_code == 201
    assert len(stripe_server.told("/v1/customers")) == 1
    assert len({sent["customer"] for sent in stripe_server.told("/v1/checkout/sessions")}) == 1


@pytest.mark.parametrize(("characters", "enough"), [(1, False), (1630, False), (1642, True), (1643, True)])
async def test_the_smallest_purchase(buyer: Tenant, characters: int, enough: bool) -> None:
    answer = await buyer.client.post(PURCHASE, json={"character_count": characters})
    if enough:
        assert (answer.status_code, answer.json()["total_price"]) == (201, 0.6)
        return
    assert (answer.status_code, answer.json()["error_code"]) == (400, "PURCHASE_TOO_SMALL")
    least = answer.json()["context"]["minimum_characters"]
    assert least == 1631
    assert (await buyer.client.post(PURCHASE, json={"character_count": least})).status_code == 201
    assert (await buyer.client.post(PURCHASE, json={"character_count": least - 1})).status_code == 400


@pytest.mark.parametrize("characters", [0, -1, 100_000_001, 10**30, "10000", 1.5, None, True])
async def test_an_amount_that_nobody_buys(buyer: Tenant, characters: Any) -> None:
    assert (await buyer.client.post(PURCHASE, json={"character_count": characters})).status_code == 422


async def test_a_repeated_request_is_one_order(
    buyer: Tenant,
    stripe_server: StripeServer,  # noqa: F811
) -> None:
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    body = {"character_count": 4000}
    answers = await asyncio.gather(*[buyer.client.post(PURCHASE, json=body, headers=headers) for _ in range(5)])
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in answers) == ["", *["true"] * 4]
    assert len((await buyer.client.get("/api/billing/payments")).json()) == 1
    sent = stripe_server.told("/v1/checkout/sessions")
    assert len({one["client_reference_id"] for one in sent}) == 1
    other = await buyer.client.post(PURCHASE, json={"character_count": 4001}, headers=headers)
    assert (other.status_code, other.json()["error_code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    bad = await buyer.client.post(PURCHASE, json=body, headers={"Idempotency-Key": "\x7f"})
    assert bad.status_code == 400


@pytest.mark.parametrize("mode", ["down", "cut"])
async def test_an_outage_of_stripes_and_the_same_request_again(
    buyer: Tenant,
    stripe_server: StripeServer,  # noqa: F811
    mode: str,
    db: Database,
) -> None:
    headers, body = {"Idempotency-Key": secrets.token_hex(8)}, {"character_count": 4000}
    stripe_server.mode = mode
    answer = await buyer.client.post(PURCHASE, json=body, headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (503, "PAYMENTS_UNAVAILABLE")
    stripe_server.mode = "up"
    stripe_server.deaf = 1  # the session is made, and its answer is lost: the SDK asks again
    answer = await buyer.client.post(PURCHASE, json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    again = await buyer.client.post(PURCHASE, json=body, headers=headers)
    assert again.content == answer.content
    assert len((await buyer.client.get("/api/billing/payments")).json()) == 1
    made = [kept for key, (_, kept) in stripe_server.kept.items() if key.endswith(":checkout")]
    assert [one["url"] for one in made] == [answer.json()["checkout_url"]]


async def test_what_stripe_refuses_is_told_and_the_order_is_over(
    buyer: Tenant,
    stripe_server: StripeServer,  # noqa: F811
    db: Database,
) -> None:
    headers, body = {"Idempotency-Key": secrets.token_hex(8)}, {"character_count": 4000}
    assert (await buyer.client.post(PURCHASE, json=body)).status_code == 201  # it has a customer
    stripe_server.mode = "refuse"
    answer = await buyer.client.post(PURCHASE, json=body, headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (502, "PAYMENTS_REFUSED")
    assert "No such customer" in answer.json()["detail"]
    stripe_server.mode = "up"
    again = await buyer.client.post(PURCHASE, json=body, headers=headers)
    assert (again.status_code, again.json()["error_code"]) == (409, "CHECKOUT_EXPIRED")
    assert (await buyer.client.get("/api/billing/payments")).json()[0]["status"] == "expired"
    # The customer that Stripe did not know is made anew.
    assert (await buyer.client.post(PURCHASE, json=body)).status_code == 201
    assert len(stripe_server.told("/v1/customers")) == 2


async def test_an_expired_checkout_is_not_opened_again(
    buyer: Tenant,
    door: httpx.AsyncClient,  # noqa: F811
    settings: Settings,
    db: Database,
) -> None:
    headers, body = {"Idempotency-Key": secrets.token_hex(8)}, {"character_count": 4000}
    number = (await buyer.client.post(PURCHASE, json=body, headers=headers)).json()["id"]
    await deliver(door, expired(await order_of(db, number)))
    await handle_all(db, settings)
    assert (await order_of(db, number)).state == "expired"
    again = await buyer.client.post(PURCHASE, json=body, headers=headers)
    assert (again.status_code, again.json()["error_code"]) == (409, "CHECKOUT_EXPIRED")
    assert (await buyer.client.get("/api/billing/payments")).json()[0]["status"] == "expired"


async def test_a_repeated_request_after_the_payment_is_not_told_to_pay_again(
    buyer: Tenant,
    door: httpx.AsyncClient,  # noqa: F811
    settings: Settings,
    db: Database,
) -> None:
    headers, body = {"Idempotency-Key": secrets.token_hex(8)}, {"character_count": 4000}
    first = await buyer.client.post(PURCHASE, json=body, headers=headers)
    await deliver(door, completed(await order_of(db, first.json()["id"])))
    await handle_all(db, settings)
    assert (await order_of(db, first.json()["id"])).state == "completed"
    again = await buyer.client.post(PURCHASE, json=body, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)


async def test_a_plan_is_bought_and_changed_at_stripe(
    buyer: Tenant,
    door: httpx.AsyncClient,  # noqa: F811
    stripe_server: StripeServer,  # noqa: F811
    paying: Settings,  # noqa: F811
    db: Database,
) -> None:
    client, user = buyer.client, buyer.login["user"]["id"]
    answer = await client.post("/api/billing/subscribe", json={"plan": "Pro"})
    assert answer.status_code == 200, answer.text
    sent = stripe_server.told("/v1/checkout/sessions")[-1]
    assert (sent["mode"], sent["line_items[0][price]"]) == ("subscription", "price_pro")
    assert sent["subscription_data[metadata][user_id]"] == str(user)
    await deliver(door, subscription("created", user_id=user, id=f"sub_{user}"))
    await handle_all(db, paying)
    matches(
        (await client.get("/api/users/me/subscription")).json(),
        {
            "user_id": user,
            "stripe_subscription_id": f"sub_{user}",
            "plan": "Pro",
            "status": "active",
            "current_period_start": str,
            "current_period_end": str,
        },
    )
    again = await client.post("/api/billing/subscribe", json={"plan": "Pro"})
    assert (again.status_code, again.json()["error_code"]) == (409, "ALREADY_SUBSCRIBED")
    portal = await client.post("/api/billing/portal")
    assert portal.json()["portal_url"].startswith("https://billing.stripe.com/")
    assert stripe_server.told("/v1/billing_portal/sessions")[-1]["customer"] == sent["customer"]


async def test_one_key_one_subscription(buyer: Tenant) -> None:
    headers = {"Idempotency-Key": "k" * 200}
    answers = [await buyer.client.post("/api/billing/subscribe", json={"plan": "Pro"}, headers=headers) for _ in "ab"]
    assert answers[0].json() == answers[1].json()
    other = await buyer.client.post("/api/billing/subscribe", json={"plan": "Pro"})
    assert other.json() != answers[0].json()


@pytest.mark.parametrize("plan", ["Free", "Small", "Gold"])
async def test_a_plan_without_a_price(buyer: Tenant, plan: str) -> None:
    answer = await buyer.client.post("/api/billing/subscribe", json={"plan": plan})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "PLAN_NOT_FOR_SALE")
    assert answer.json()["context"]["plans"] == ["Pro"]


async def test_invoices(buyer: Tenant, stripe_server: StripeServer) -> None:  # noqa: F811
    assert (await buyer.client.get("/api/billing/invoices")).json() == []
    assert not [asked for _, asked, *_ in stripe_server.requests if asked == "/v1/invoices"], "nobody's invoices"
    await buyer.client.post("/api/billing/portal")
    invoice = {
        "number": "A-1",
        "status": "paid",
        "amount_due": 2000,
        "amount_paid": 2000,
        "currency": "eur",
        "hosted_invoice_url": "https://invoice.stripe.com/i/1",
        "invoice_pdf": "https://invoice.stripe.com/i/1/pdf",
    }
    stripe_server.invoices = [{**invoice, "id": f"in_{n}", "created": 1_800_000_000 + n} for n in range(5)]
    page = await buyer.client.get("/api/billing/invoices", params={"limit": 2})
    assert [row["id"] for row in page.json()] == ["in_4", "in_3"]
    matches(page.json()[0], {"number": "A-1", "status": "paid", "amount_paid_cents": 2000, "created_at": str})
    page = await buyer.client.get("/api/billing/invoices", params={"starting_after": "in_3"})
    assert [row["id"] for row in page.json()] == ["in_2", "in_1", "in_0"]
    asked = [params for _, path, params, _ in stripe_server.requests if path == "/v1/invoices"]
    assert {params["customer"] for params in asked} == {
        stripe_server.told("/v1/billing_portal/sessions")[0]["customer"]
    }
    assert (await buyer.client.get("/api/billing/invoices", params={"starting_after": "x"})).status_code == 422


async def test_without_a_key_nothing_is_written_and_the_rest_works(tenant: Tenant, db: Database) -> None:
    for path, body in (
        (PURCHASE, {"character_count": 10_000}),
        ("/api/billing/subscribe", {"plan": "Free"}),
        ("/api/billing/portal", None),
    ):
        answer = await tenant.client.post(path, json=body)
        assert (answer.status_code, answer.json()["error_code"]) == (503, "PAYMENTS_NOT_CONFIGURED"), path
    user = tenant.login["user"]["id"]
    async with db.transaction() as session:
        for model in (Order, Payment):
            assert await session.scalar(select(func.count()).where(model.user_id == user)) == 0
    assert (await tenant.client.get("/api/billing/payments")).json() == []
    assert (await tenant.client.get("/api/billing/invoices")).json() == []


async def test_the_account_goes_and_its_customer_with_it(
    buyer: Tenant,
    paying_app: Any,  # noqa: F811
    door: httpx.AsyncClient,  # noqa: F811
    stripe_server: StripeServer,  # noqa: F811
    settings: Settings,
    db: Database,
) -> None:
    number = (await buyer.client.post(PURCHASE, json={"character_count": 4000})).json()["id"]
    order = await order_of(db, number)
    await deliver(door, completed(order))
    await handle_all(db, settings)
    customer = stripe_server.told("/v1/checkout/sessions")[-1]["customer"]
    answer = await buyer.client.request("DELETE", "/api/users/me", json={"password": buyer.password})
    assert answer.status_code == 204, answer.text
    await paying_app.state.services.background.idle()
    assert ("DELETE", f"/v1/customers/{customer}") in [(method, path) for method, path, *_ in stripe_server.requests]
    async with db.transaction() as session:
        payment = (await session.scalars(select(Payment).where(Payment.user_id == order.user_id))).one()
    assert (payment.state, payment.amount_cents) == ("paid", order.amount_cents)
