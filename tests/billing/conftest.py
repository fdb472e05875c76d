"""An application that takes payments, at a Stripe of the tests' own, and orders to be paid."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from backend.billing import orders, payments
from backend.billing.models import Order
from backend.billing.pricing import Prices, quote_purchase
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.main import create_app
from backend.users.models import User
from tests.billing.stripe_events import SECRET
from tests.billing.stripe_server import StripeServer, running_stripe

MakeOrder = Callable[..., Awaitable[Order]]


@pytest.fixture
def stripe_server() -> Iterator[StripeServer]:
    with running_stripe() as server:
        yield server


@pytest.fixture
def paying(settings: Settings, stripe_server: StripeServer) -> Settings:
    """Settings with which payments are taken."""
    return settings.model_copy(
        update={
            "stripe_secret_key": SecretStr("sk_test_12345"),
            "stripe_webhook_secrets": [SecretStr("whsec_the_next_one"), SecretStr(SECRET)],
            "stripe_api_base": stripe_server.url,
            "plans": {**settings.plans, "Pro": {"max_projects": 10, "max_fine_tunings": 5, "price_id": "price_pro"}},
        }
    )


@pytest.fixture
async def paying_app(paying: Settings) -> AsyncIterator[Any]:
    application = create_app(paying)
    async with application.router.lifespan_context(application):
        yield application


@pytest.fixture
async def door(paying_app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a token, as Stripe is one."""
    transport = httpx.ASGITransport(app=paying_app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=60) as client:
        yield client


async def make_user(db: Database) -> User:
    async with db.transaction() as session:
        user = User(email=f"{secrets.token_hex(8)}@example.com", password_hash="!", name="Payer")
        session.add(user)
        await session.flush()
        return user


@pytest.fixture
def make_order(db: Database, settings: Settings) -> MakeOrder:
    """A purchase that waits for its payment: of 10,000 characters for 3.65, unless told."""

    async def make(characters: int = 10_000, *, user: User | None = None) -> Order:
        user = user or await make_user(db)
        async with db.transaction() as session:
            order = await orders.create(
                session,
                user_id=user.id,
                kind=orders.CREDITS,
                quote=quote_purchase(Prices.of(settings), characters),
                params={},
                state=orders.PENDING_PAYMENT,
            )
            await payments.expect(session, order)
            return order

    return make
