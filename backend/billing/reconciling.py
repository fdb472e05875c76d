"""Our books against Stripe's: events that never came are fetched, and what differs is told."""

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import inbox, orders, payments
from backend.billing.handlers import HANDLERS
from backend.billing.models import Account, Order, Payment, StripeEvent
from backend.jobs.service import claim_tick
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.kit.errors import DomainError
from backend.providers.stripe import Stripe

log = logging.getLogger(__name__)

TASK: Final = "payments.reconcile"
PERIOD_SECONDS: Final = 86_400.0
# Stripe itself sends an event again for three days.
DAYS: Final = 3
# What is younger may be on its way.
_GRACE_SECONDS: Final = 300


@dataclass(slots=True)
class Report:
    """What a comparison found: how many events and payments it saw, events that were missing, and differences."""

    events: int = 0
    payments: int = 0
    missing: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    paid_orders: list[int] = field(default_factory=list)


async def tick(db: Database, stripe: Stripe, settings: Settings) -> Report | None:
    """Once a day, where there is a key; an outage of Stripe's leaves it to the next day."""
    if not stripe.configured:
        return None
    async with db.transaction() as session:
        if not await claim_tick(session, TASK, PERIOD_SECONDS):
            return None
    try:
        return await reconcile(db, stripe, settings)
    except DomainError as error:
        log.warning("no comparison with Stripe today: %s", error.detail)
        return None


async def reconcile(db: Database, stripe: Stripe, settings: Settings, *, days: int = DAYS) -> Report:
    """Compares the last `days`: keeps and handles missing events, then looks at every payment of that time.

    Raises PaymentsNotConfigured, PaymentsUnavailable or PaymentsRefused.
    """
    report = Report()
    now = int(time.time())
    async for event in stripe.events_since(now - days * 86_400, sorted(HANDLERS)):
        report.events += 1
        async with db.transaction() as session:
            kept = await inbox.keep(session, event)
        if kept is not None and now - int(event["created"]) > _GRACE_SECONDS:
            report.missing.append(event["id"])
    handled = await inbox.handle_due(db, settings, at_once=True)
    report.paid_orders = handled.paid_orders
    async for intent in stripe.payment_intents_since(now - days * 86_400):
        if intent.get("status") == "succeeded" and now - int(intent["created"]) > _GRACE_SECONDS:
            report.payments += 1
            async with db.transaction() as session:
                difference = await _difference(session, intent)
            if difference is not None:
                report.differences.append(difference)
    async with db.transaction() as session:
        await _close_abandoned(session)
    if report.missing:
        log.error("%d events of Stripe's had not come, and were fetched: %s", len(report.missing), report.missing[:20])
    for difference in report.differences:
        log.error("Stripe and our books differ: %s", difference)
    return report


async def forget_user(session: AsyncSession, user_id: int) -> str | None:
    """Empties what Stripe's events say about a user and unties the customer, for an account that is deleted.

    Returns the customer, for `drop_customer` after the commit.
    """
    customer = await session.scalar(select(Account.stripe_customer_id).where(Account.user_id == user_id))
    told = StripeEvent.payload["data"]["object"]
    named = told["metadata"]["user_id"].astext == str(user_id)
    # One that was given up never came to be noted whose it is; one that is still to be handled empties itself.
    given_up = StripeEvent.user_id.is_(None) & (StripeEvent.state == inbox.DEAD)
    theirs = (StripeEvent.user_id == user_id) | (given_up & (named | (told["customer"].astext == customer)))
    await session.execute(update(StripeEvent).where(theirs).values(payload={}, error=None))
    await session.execute(update(Account).where(Account.user_id == user_id).values(stripe_customer_id=None))
    return customer


async def drop_customer(stripe: Stripe, customer: str) -> None:
    """Deletes a customer at Stripe, and with it the subscriptions; a failure is for a person to repair."""
    try:
        await stripe.delete_customer(customer)
    except DomainError as error:
        log.error("customer %s of a deleted account is left at Stripe, delete it there: %s", customer, error.detail)


async def _difference(session: AsyncSession, intent: dict[str, Any]) -> str | None:
    """What is wrong with a payment intent that Stripe says succeeded; None when all is well, or it is not ours."""
    payment = await session.scalar(select(Payment).where(Payment.stripe_payment_intent == intent["id"]))
    if payment is None:
        ours = (intent.get("metadata") or {}).get("order_id")
        return f"{intent['id']} of order {ours} is paid at Stripe, and there is no payment here" if ours else None
    amount, currency = int(intent.get("amount_received") or 0), str(intent.get("currency"))
    if (payment.state, payment.amount_cents, payment.currency) != (payments.PAID, amount, currency):
        return (
            f"{intent['id']} is {amount} {currency} at Stripe, and payment {payment.id} here is {payment.state} with "
            f"{payment.amount_cents} {payment.currency}"
        )
    return None


async def _close_abandoned(session: AsyncSession) -> None:
    """Payments whose order has ended unpaid, or went with its account."""
    ended = select(Order.id).where(
        Order.id == Payment.order_id, Order.state.in_([orders.EXPIRED, orders.FAILED, orders.CREDITED])
    )
    gone = ~select(Order.id).where(Order.id == Payment.order_id).exists() & Payment.order_id.is_not(None)
    await session.execute(
        update(Payment)
        .where(Payment.state == payments.PENDING, ended.exists() | gone)
        .values(state=payments.EXPIRED, updated_at=datetime.now(UTC))
    )
