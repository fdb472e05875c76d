"""What Stripe is told, against its own description of its API; and what its failures become."""

import json
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import stripe
from pydantic import SecretStr

from backend.kit.config import Settings
from backend.providers.stripe import (
    API_VERSION,
    BadStripeSignature,
    PaymentsKeyReused,
    PaymentsNotConfigured,
    PaymentsRefused,
    PaymentsUnavailable,
    Stripe,
    require_signature,
)
from tests.billing.stripe_server import StripeServer, running_stripe
from tests.providers.tuning.outside import node_server, spec

STEADY = "@stdy/cli/steady.js"
BRACKETS = (
    "--validator-form-object-format=brackets",
    "--validator-form-array-format=brackets",
    "--validator-query-array-format=brackets",
    "--validator-query-object-format=brackets",
)
METADATA = {"order_id": "01a202ad-685c-7467-898b-4164d728c12a", "payment_type": "character_credits", "user_id": "7"}


@pytest.fixture(scope="module")
def steady() -> Iterator[str]:
    """Somebody else's server, which answers by Stripe's description and refuses what does not follow it."""
    description = spec("stripe.spec3.yaml")
    with node_server(STEADY, "--host", "127.0.0.1", "-p", "{port}", "-q", *BRACKETS, str(description)) as url:
        yield url


@pytest.fixture
def server() -> Iterator[StripeServer]:
    with running_stripe() as running:
        yield running


def settings_at(url: str) -> Settings:
    return Settings(_env_file=None, stripe_secret_key=SecretStr("sk_test_canary"), stripe_api_base=url)  # type: ignore[call-arg]


@pytest.fixture
async def described(steady: str) -> AsyncIterator[Stripe]:
    client = Stripe(settings_at(steady))
    yield client
    await client.close()


@pytest.fixture
async def client(server: StripeServer) -> AsyncIterator[Stripe]:
    made = Stripe(settings_at(server.url))
    yield made
    await made.close()


def checkout(**changes: Any) -> dict[str, Any]:
    """As billing.checkout sends it; tests/contracts/test_platform_payments.py looks at what is really sent."""
    return {
        "mode": "payment",
        "customer": "cus_1",
        "client_reference_id": METADATA["order_id"],
        "metadata": METADATA,
        "payment_intent_data": {"metadata": METADATA, "description": "x", "receipt_email": "a@example.com"},
        "line_items": [
            {
                "quantity": 1,
                "price_data": {"currency": "eur", "unit_amount": 365, "product_data": {"name": "10000 caractères"}},
            }
        ],
        "locale": "fr",
        "expires_at": 1_800_000_000,
        "success_url": "https://app.example.com/dashboard/billing?checkout=success&session_id={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://app.example.com/dashboard/billing?checkout=cancelled",
        **changes,
    }


async def send(client: Stripe, params: dict[str, Any]) -> None:
    """The answers are made up from the description, by which a session need not have an address."""
    try:
        await client.create_checkout(params, idempotency_key=json.dumps(params)[:255])
    except PaymentsRefused as error:
        if "has no address" not in error.detail:
            raise


async def test_stripes_description_accepts_what_is_sent(described: Stripe) -> None:
    assert await described.create_customer(email="a@example.com", name="Zoé", user_id=7, idempotency_key="c1")
    await send(described, checkout())
    plan = {
        "mode": "subscription",
        "customer": "cus_1",
        "metadata": METADATA,
        "subscription_data": {"metadata": METADATA},
        "line_items": [{"price": "price_1", "quantity": 1}],
        "success_url": "https://app.example.com/s",
        "cancel_url": "https://app.example.com/c",
    }
    await send(described, plan)
    assert await described.open_portal("cus_1", return_url="https://app.example.com/")
    assert await described.refund("pi_1", amount_cents=100, idempotency_key="r1")
    assert isinstance(await described.list_invoices("cus_1", limit=20, starting_after="in_1"), list)
    await described.delete_customer("cus_1")
    # Without types: Stripe takes the SDK's `types[0]=...`, the other server only `types[]=...`.
    async for _ in described.events_since(int(time.time()) - 60, []):
        break
    async for _ in described.payment_intents_since(int(time.time()) - 60):
        break


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "gift"},
        {"colour": "blue"},
        {"expires_at": "tomorrow"},
        {"line_items": [{"quantity": "many"}]},
        {"payment_intent_data": {"setup_future_usage": "never"}},
    ],
)
async def test_and_would_not_accept_anything(described: Stripe, wrong: dict[str, Any]) -> None:
    """Else the test above would prove nothing. The refusal is not written as Stripe writes it."""
    with pytest.raises(PaymentsUnavailable):
        await send(described, checkout(**wrong))


async def test_one_key_one_session(client: Stripe, server: StripeServer) -> None:
    first = await client.create_checkout(checkout(), idempotency_key="o1:checkout")
    assert await client.create_checkout(checkout(), idempotency_key="o1:checkout") == first
    with pytest.raises(PaymentsKeyReused):
        await client.create_checkout(checkout(locale="en"), idempotency_key="o1:checkout")
    method, path, params, headers = server.requests[0]
    assert (method, path, params["line_items[0][price_data][unit_amount]"]) == ("POST", "/v1/checkout/sessions", "365")
    assert (headers["Stripe-Version"], headers["Idempotency-Key"]) == (API_VERSION, "o1:checkout")
    assert headers["Authorization"] == "Bearer sk_test_canary"
    assert "X-Stripe-Client-Telemetry" not in server.requests[-1][3], "Stripe is told nothing of this machine"


async def test_a_lost_answer_is_asked_for_again(client: Stripe, server: StripeServer) -> None:
    server.deaf = 2
    opened = await client.create_checkout(checkout(), idempotency_key="o1:checkout")
    assert len(server.requests) == 3
    assert len(server.kept) == 1
    assert opened.id == server.kept["o1:checkout"][1]["id"]


@pytest.mark.parametrize("mode", ["down", "cut"])
async def test_an_outage(client: Stripe, server: StripeServer, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    server.mode = mode
    with pytest.raises(PaymentsUnavailable) as failure:
        await client.create_checkout(checkout(), idempotency_key="o1:checkout")
    assert failure.value.__cause__ is None
    assert len(server.requests) == 3
    assert "canary" not in caplog.text


async def test_nobody_there() -> None:
    away = Stripe(settings_at("http://127.0.0.1:9"))
    with pytest.raises(PaymentsUnavailable):
        await away.open_portal("cus_1", return_url="https://app.example.com/")
    await away.close()


async def test_a_refusal_has_stripes_words(client: Stripe, server: StripeServer) -> None:
    server.mode = "refuse"
    with pytest.raises(PaymentsRefused) as refused:
        await client.open_portal("cus_x", return_url="https://app.example.com/")
    assert "No such customer: 'cus_x'." in refused.value.detail
    assert refused.value.context["stripe_code"] == "resource_missing"
    assert len(server.requests) == 1
    await client.delete_customer("cus_x")  # gone is gone


async def test_without_a_key() -> None:
    nobody = Stripe(Settings(_env_file=None))  # type: ignore[call-arg]
    assert not nobody.configured
    with pytest.raises(PaymentsNotConfigured):
        await nobody.open_portal("cus_1", return_url="https://app.example.com/")


def test_the_signature_of_any_secret_counts() -> None:
    body = '{"name": "Zoé"}'.encode()
    header = stripe.WebhookSignature.generate_signature_header(body.decode(), "whsec_2")
    require_signature(body, header, ["whsec_1", "whsec_2"])
    for secrets in ([], ["whsec_1"], [""]):
        with pytest.raises(BadStripeSignature):
            require_signature(body, header, secrets)


def test_the_version_is_the_sdks_own() -> None:
    """A newer SDK must not silently speak an older version than it was written for."""
    assert stripe.api_version == API_VERSION


def test_a_service_without_payments_does_not_load_the_sdk() -> None:
    code = "import sys, backend.main; print('stripe' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


async def test_the_sdk_warns_of_nothing_else(server: StripeServer) -> None:
    """pyproject.toml lets pass one warning of httpx about how the SDK calls it; there is no other."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        one = Stripe(settings_at(server.url))
        await one.create_checkout(checkout(), idempotency_key="w1")
        await one.close()
    assert all("content=" in str(warning.message) for warning in seen if "stripe" in warning.filename), seen
    assert httpx.__version__.startswith("0.")
