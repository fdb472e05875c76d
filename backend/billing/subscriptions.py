"""Plans that are paid by the month: bought at Stripe, changed at its portal, and followed by its events."""

import hashlib
import logging
import secrets
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import checkout, payments
from backend.billing.errors import AlreadySubscribed, PlanNotForSale
from backend.billing.models import Account, Payment, StripeEvent
from backend.kit.config import FREE_PLAN, Settings
from backend.kit.db import Database
from backend.kit.owner import Owner
from backend.providers.stripe import PaymentsKeyReused, Stripe
from backend.users.errors import IdempotencyKeyReused
from backend.users.models import Subscription, User

log = logging.getLogger(__name__)

# While it is in one of these, nobody buys another.
LIVE: Final = frozenset({"active", "trialing", "past_due", "unpaid", "paused"})
_DELETED: Final = "customer.subscription.deleted"
_CREATED: Final = "customer.subscription.created"


async def subscribe(
    db: Database, stripe: Stripe, settings: Settings, owner: Owner, *, plan: str, key: str | None
) -> str:
    """The page at which the owner pays for a plan. The same `key` (an Idempotency-Key) gives the same page.

    Raises PaymentsNotConfigured, PlanNotForSale, AlreadySubscribed, IdempotencyKeyReused, PaymentsUnavailable or
    PaymentsRefused.
    """
    checkout.require_payments(settings)
    price = settings.plans.get(plan, {}).get("price_id")
    if not price:
        raise PlanNotForSale(plan=plan, plans=[name for name, terms in settings.plans.items() if terms.get("price_id")])
    async with db.transaction() as session:
        present = await session.scalar(select(Subscription).where(Subscription.user_id == owner.id))
        if present is not None and present.stripe_subscription_id and present.status in LIVE:
            raise AlreadySubscribed(plan=present.plan)
    customer = await checkout.customer_of(db, stripe, owner.id)
    metadata = {"user_id": str(owner.id), "payment_type": payments.SUBSCRIPTION}
    page = f"{settings.frontend_url.rstrip('/')}/dashboard/billing"
    params = {
        "mode": "subscription",
        "customer": customer,
        "client_reference_id": str(owner.public_id),
        "metadata": metadata,
        "subscription_data": {"metadata": metadata},
        "line_items": [{"price": price, "quantity": 1}],
        "success_url": f"{page}?subscription=success&session_id={{CHECKOUT_SESSION_ID}}",
        "cancel_url": f"{page}?subscription=cancelled",
    }
    # A key of ours is the caller's alone; hashed, because it may be longer than Stripe takes.
    mark = hashlib.sha256(key.encode()).hexdigest()[:32] if key is not None else secrets.token_hex(16)
    try:
        opened = await stripe.create_checkout(params, idempotency_key=f"subscribe:{owner.public_id}:{mark}")
    except PaymentsKeyReused:
        raise IdempotencyKeyReused() from None
    return opened.url


async def open_portal(db: Database, stripe: Stripe, settings: Settings, owner: Owner) -> str:
    """The page at which the owner changes or ends the plan, or the card. Raises as `subscribe` does."""
    checkout.require_payments(settings)
    customer = await checkout.customer_of(db, stripe, owner.id)
    return await stripe.open_portal(customer, return_url=f"{settings.frontend_url.rstrip('/')}/dashboard/billing")


async def apply(session: AsyncSession, settings: Settings, event: StripeEvent, found: dict[str, Any]) -> int | None:
    """Brings the user's plan to what an event says, unless a later one was here before; returns whose it is."""
    user_id = await _user_of(session, found)
    if user_id is None:
        return None
    if await session.scalar(select(User.id).where(User.id == user_id).with_for_update(key_share=True)) is None:
        return user_id
    row = await session.scalar(
        select(Subscription).where(Subscription.user_id == user_id).execution_options(populate_existing=True)
    )
    if row is None:
        row = Subscription(user_id=user_id, plan=FREE_PLAN, status=str(found["status"])[:30])
        session.add(row)
    elif not _is_news(row, event, found):
        return user_id
    item: dict[str, Any] = next(iter((found.get("items") or {}).get("data") or []), {})
    row.plan = _plan_of(settings, item, row.plan)
    row.stripe_subscription_id = str(found["id"])
    row.stripe_customer_id = str(found["customer"])
    row.status = "canceled" if event.type == _DELETED else str(found["status"])[:30]
    row.current_period_start = _time(item.get("current_period_start"))
    row.current_period_end = _time(item.get("current_period_end"))
    row.cancel_at_period_end = bool(found.get("cancel_at_period_end") or found.get("cancel_at"))
    row.changed_at = event.occurred_at
    await session.flush()
    return user_id


async def note_invoice(session: AsyncSession, event: StripeEvent, found: dict[str, Any]) -> int | None:
    """Writes down what an invoice took, or failed to take; returns whose it is. One for nothing is no payment."""
    details = (found.get("parent") or {}).get("subscription_details") or {}
    user_id = await _user_of(session, {"customer": found.get("customer"), **details, "id": details.get("subscription")})
    if user_id is None:
        return None
    # Two events of one invoice, one after the other: the row may not be there yet.
    await payments.serialise(session, str(found["id"]))
    row = await session.scalar(
        select(Payment).where(Payment.stripe_invoice_id == found["id"]).with_for_update(key_share=True)
    )
    paid = event.type == "invoice.paid"
    amount = int(found.get("amount_paid" if paid else "amount_due") or 0)
    if amount == 0 or (row is not None and row.state == payments.PAID):
        return user_id
    if row is None:
        row = Payment(user_id=user_id, kind=payments.SUBSCRIPTION, stripe_invoice_id=str(found["id"]))
        session.add(row)
    row.amount_cents, row.currency = amount, str(found["currency"])[:3]
    row.state = payments.PAID if paid else payments.FAILED
    row.paid_at = event.occurred_at if paid else None
    await session.flush()
    return user_id


async def note_intent(session: AsyncSession, invoice: str, intent: str) -> int | None:
    """Ties a payment intent to the payment of its invoice; returns whose it is, None while there is no such payment."""
    row = await session.scalar(
        select(Payment)
        .where(Payment.stripe_invoice_id == invoice, Payment.state == payments.PAID)
        .with_for_update(key_share=True)
    )
    if row is None:
        return None
    row.stripe_payment_intent = row.stripe_payment_intent or intent
    await session.flush()
    return row.user_id


def _is_news(row: Subscription, event: StripeEvent, found: dict[str, Any]) -> bool:
    if row.stripe_subscription_id not in (None, found["id"]):
        # Another subscription of the same user: the one that runs counts.
        if row.status in LIVE and (event.type == _DELETED or found["status"] not in LIVE):
            return False
        if row.status in LIVE:
            log.warning("user %d has two subscriptions at Stripe: the newer one counts", row.user_id)
        elif found["status"] in LIVE and event.type != _DELETED:
            return True
    if row.changed_at is None or row.changed_at < event.occurred_at:
        return True
    # Stripe's clock counts seconds. Of one second: nothing comes before its creation, or after its end.
    same_moment = row.changed_at == event.occurred_at
    return same_moment and event.type != _CREATED and row.status != "canceled"


def _plan_of(settings: Settings, item: dict[str, Any], present: str) -> str:
    price = (item.get("price") or {}).get("id")
    for name, terms in settings.plans.items():
        if price is not None and terms.get("price_id") == price:
            return name
    log.error("Stripe's price %s belongs to no plan of PLANS: the plan stays '%s'", price, present)
    return present


async def _user_of(session: AsyncSession, found: dict[str, Any]) -> int | None:
    """By the subscription, by the customer, or by the number that we sent with it. None: not ours."""
    queries = [
        select(Subscription.user_id).where(Subscription.stripe_subscription_id == str(found.get("id"))),
        select(Account.user_id).where(Account.stripe_customer_id == str(found.get("customer"))),
    ]
    for query in queries:
        user_id = await session.scalar(query)
        if user_id is not None:
            return user_id
    named = str((found.get("metadata") or {}).get("user_id"))
    return int(named) if named.isascii() and named.isdecimal() and len(named) < 19 else None


def _time(seconds: Any) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC)
