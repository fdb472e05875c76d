"""Checkouts: an order becomes a page at Stripe, and the same order always the same page."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import ledger, orders, payments
from backend.billing.errors import CheckoutExpired, PurchaseTooSmall
from backend.billing.models import Account, Order
from backend.billing.pricing import Prices, cents, quote_purchase
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.kit.owner import Owner
from backend.providers.stripe import PaymentsNotConfigured, PaymentsRefused, Stripe
from backend.users.models import User
from backend.users.service import LOCAL_EMAIL

# Stripe allows a day at most; the rest is for a request that is repeated after a failure.
PAYABLE_HOURS: Final = 23
# The owner of AUTH_MODE=local has no address to send receipts to.
_NO_EMAILS: Final = frozenset({LOCAL_EMAIL})
_NAMES: Final = {"fr": "{count} caractères FineTuneFlow", "en": "{count} FineTuneFlow characters"}


@dataclass(frozen=True, slots=True)
class _Payer:
    """Whom Stripe knows, or is to know."""

    user_id: int
    public_id: UUID
    email: str
    name: str
    language: str
    customer: str | None


def require_payments(settings: Settings) -> None:
    """Raises PaymentsNotConfigured; call it before anything is written that only a payment completes."""
    if not settings.stripe_secret_key.get_secret_value():
        raise PaymentsNotConfigured()


async def order_characters(session: AsyncSession, settings: Settings, owner: Owner, characters: int) -> Order:
    """Writes down a purchase for the balance, to be paid. Raises PaymentsNotConfigured or PurchaseTooSmall."""
    require_payments(settings)
    prices = Prices.of(settings)
    amount = cents(prices.price_per_character, characters)
    if amount < prices.checkout_minimum_cents:
        raise PurchaseTooSmall(
            character_count=characters,
            amount_cents=amount,
            minimum_cents=prices.checkout_minimum_cents,
            minimum_characters=_least(prices),
        )
    order = await orders.create(
        session,
        user_id=owner.id,
        kind=orders.CREDITS,
        quote=quote_purchase(prices, characters),
        params={},
        state=orders.PENDING_PAYMENT,
    )
    await payments.expect(session, order)
    return order


async def open_checkout(db: Database, stripe: Stripe, settings: Settings, order_id: int) -> Order:
    """The order with its `checkout_url`, which is made when there is none; the order's row must be committed.

    One that is paid keeps the address at which it was. Asks Stripe outside any transaction. After PaymentsUnavailable
    the order waits, and a second call goes on with it; after PaymentsRefused it has expired. Raises CheckoutExpired for
    an order that nobody can pay any more.
    """
    require_payments(settings)
    async with db.transaction() as session:
        order = await _payable(session, order_id)
        if order.checkout_url is not None:
            return order
        await payments.expect(session, order)
        payer = await _payer(session, order.user_id)
    try:
        customer = await _customer(db, stripe, payer)
        params = _params(settings, order, payer, customer)
        opened = await stripe.create_checkout(params, idempotency_key=f"{order.public_id}:checkout")
    except PaymentsRefused as error:
        async with db.transaction() as session:
            if await orders.expire(session, order, error):
                await payments.close(session, order.id, payments.EXPIRED)
            if error.context.get("stripe_code") == "resource_missing":
                # The customer was deleted at Stripe, or is of another key: the next order makes a new one.
                await _forget_customer(session, order.user_id)
        raise
    async with db.transaction() as session:
        order = await _locked(session, order_id)
        order.stripe_session_id, order.checkout_url = opened.id, opened.url
        await payments.note_session(session, order)
        await session.flush()
        return order


async def customer_of(db: Database, stripe: Stripe, user_id: int) -> str:
    """The user's customer at Stripe, made at first need."""
    async with db.transaction() as session:
        payer = await _payer(session, user_id)
    return await _customer(db, stripe, payer)


async def find_customer(session: AsyncSession, user_id: int) -> str | None:
    return await session.scalar(select(Account.stripe_customer_id).where(Account.user_id == user_id))


async def _customer(db: Database, stripe: Stripe, payer: _Payer) -> str:
    if payer.customer is not None:
        return payer.customer
    # What may have changed since a crash is part of the key: Stripe refuses a key with another request.
    told = hashlib.sha256(f"{payer.email}\0{payer.name}".encode()).hexdigest()[:16]
    made = await stripe.create_customer(
        email=payer.email,
        name=payer.name,
        user_id=payer.user_id,
        idempotency_key=f"customer:{payer.public_id}:{told}",
    )
    async with db.transaction() as session:
        await ledger.lock(session, payer.user_id)
        await session.execute(
            update(Account)
            .where(Account.user_id == payer.user_id, Account.stripe_customer_id.is_(None))
            .values(stripe_customer_id=made)
        )
        return await find_customer(session, payer.user_id) or made


async def _forget_customer(session: AsyncSession, user_id: int) -> None:
    await ledger.lock(session, user_id)
    await session.execute(update(Account).where(Account.user_id == user_id).values(stripe_customer_id=None))


async def _payable(session: AsyncSession, order_id: int) -> Order:
    order = await _locked(session, order_id)
    if order.paid_at is not None and order.checkout_url is not None:
        return order
    # A page that would be open for less than half an hour is none that Stripe makes.
    too_late = datetime.now(UTC) - order.created_at > timedelta(hours=PAYABLE_HOURS - 1)
    if order.state != orders.PENDING_PAYMENT or (order.checkout_url is None and too_late):
        raise CheckoutExpired()
    return order


async def _locked(session: AsyncSession, order_id: int) -> Order:
    order = await orders.lock(session, order_id)
    if order is None:  # it went with its account
        raise CheckoutExpired()
    return order


async def _payer(session: AsyncSession, user_id: int) -> _Payer:
    user = (await session.scalars(select(User).where(User.id == user_id))).one()
    customer = await find_customer(session, user_id)
    return _Payer(user.id, user.public_id, user.email, user.name, user.language, customer)


def _params(settings: Settings, order: Order, payer: _Payer, customer: str) -> dict[str, Any]:
    """What Stripe is told. A repeated request must say the same, so nothing in it depends on the time."""
    metadata = {"order_id": str(order.public_id), "payment_type": order.kind, "user_id": str(order.user_id)}
    if order.project_id is not None:
        metadata["project_id"] = str(order.project_id)
    language = payer.language if payer.language in _NAMES else "fr"
    name = _NAMES[language].format(count=order.characters_bought)
    intent: dict[str, Any] = {"metadata": metadata, "description": name}
    if payer.email not in _NO_EMAILS:
        intent["receipt_email"] = payer.email
    return {
        "mode": "payment",
        "customer": customer,
        "client_reference_id": str(order.public_id),
        "metadata": metadata,
        "payment_intent_data": intent,
        "line_items": [
            {
                "quantity": 1,
                "price_data": {
                    "currency": order.currency,
                    "unit_amount": order.amount_cents,
                    "product_data": {"name": name},
                },
            }
        ],
        "locale": language,
        "expires_at": int(order.created_at.timestamp()) + PAYABLE_HOURS * 3600,
        **_pages(settings, order),
    }


def _pages(settings: Settings, order: Order) -> dict[str, str]:
    """Where the browser goes when it was paid, and when not."""
    base = f"{settings.frontend_url.rstrip('/')}/dashboard"
    if order.kind == orders.LAUNCH and order.project_id is not None:
        page = f"{base}/projects/{order.project_id}?tab=finetune&"
    elif order.kind == orders.ONBOARDING:
        page = f"{base}?onboarding_completed=true&"
    else:
        page = f"{base}/billing?"
    success = f"{page}checkout=success&order={order.public_id}&session_id={{CHECKOUT_SESSION_ID}}"
    cancelled = page.replace("onboarding_completed=true&", "")
    return {"success_url": success, "cancel_url": f"{cancelled}checkout=cancelled&order={order.public_id}"}


def _least(prices: Prices) -> int:
    """The fewest characters whose price is no less than the smallest checkout."""
    # Half a cent is rounded upwards.
    least = (Decimal(prices.checkout_minimum_cents) - Decimal("0.5")) / (prices.price_per_character * 100)
    return max(int(least.to_integral_value(rounding=ROUND_CEILING)), 0)
