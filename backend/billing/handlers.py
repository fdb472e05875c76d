"""What each of Stripe's events means here. One call is one event, in the transaction that closes it."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import disputes, orders, payments, subscriptions
from backend.billing.errors import CheckoutExpired, PaymentFailed
from backend.billing.models import Order, StripeEvent
from backend.billing.payments import Contradiction
from backend.kit.config import Settings
from backend.users.models import User

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an event is closed: done unless it is ignored or waits for something that is not here yet."""

    ignored: bool = False
    waits_for: str | None = None
    # What others may have waited for.
    settles: tuple[str, ...] = ()
    paid_order: int | None = None
    # Its payload is about somebody whose account is gone, or nothing of ours.
    forget: bool = False


# What is nothing of ours may still name people, and nothing would ever delete it.
_IGNORED: Final = Outcome(ignored=True, forget=True)
Handler = Callable[[AsyncSession, Settings, StripeEvent, dict[str, Any]], Awaitable[Outcome]]


async def apply(session: AsyncSession, settings: Settings, event: StripeEvent) -> Outcome:
    """Raises Contradiction for what must not be booked; any other failure is worth another attempt."""
    handler = HANDLERS.get(event.type)
    if handler is None or not event.payload:
        return _IGNORED
    return await handler(session, settings, event, event.payload["data"]["object"])


async def _checkout_paid(
    session: AsyncSession, settings: Settings, event: StripeEvent, checkout: dict[str, Any]
) -> Outcome:
    """checkout.session.completed and async_payment_succeeded: the money is there, or is promised."""
    if checkout.get("mode") == "subscription":
        return await _subscribed(session, event, checkout)
    if checkout.get("payment_status") == "unpaid":
        # async_payment_succeeded or _failed says what becomes of it.
        promised, _ = await _order_of(session, checkout)
        if promised is None:
            return _IGNORED
        event.user_id = promised.user_id
        await orders.await_bank(session, promised)
        return Outcome()
    intent = checkout.get("payment_intent")
    if isinstance(intent, str):
        await payments.serialise(session, intent)
    order, user_id = await _order_of(session, checkout)
    if order is None:
        if user_id is None:
            return _IGNORED
        event.user_id = user_id
        if await _is_user(session, user_id):
            raise Contradiction(f"Session {checkout['id']} was paid for an order that is not here.")
        await payments.record_without_order(session, user_id, checkout)
        return Outcome(settles=(intent,) if isinstance(intent, str) else (), forget=True)
    event.user_id = order.user_id
    landed = await payments.land(session, order, checkout)
    has_work = landed and order.kind != orders.CREDITS
    return Outcome(settles=(str(intent),), paid_order=order.id if has_work else None)


async def _checkout_unpaid(
    session: AsyncSession, settings: Settings, event: StripeEvent, checkout: dict[str, Any]
) -> Outcome:
    """checkout.session.expired and async_payment_failed: nobody pays any more, unless somebody has paid."""
    order, user_id = await _order_of(session, checkout)
    event.user_id = user_id if order is None else order.user_id
    if order is None:
        return _IGNORED
    failed = event.type.endswith("async_payment_failed")
    if order.stripe_session_id not in (None, checkout["id"]):
        return _IGNORED  # of a session that is not the order's any more
    if await orders.expire(session, order, PaymentFailed() if failed else CheckoutExpired()):
        await payments.close(session, order.id, payments.FAILED if failed else payments.EXPIRED)
    return Outcome()


async def _returned(session: AsyncSession, settings: Settings, event: StripeEvent, found: dict[str, Any]) -> Outcome:
    """Refunds and disputes: of a payment that is not here yet, they wait for it."""
    intent = found.get("payment_intent")
    if not isinstance(intent, str):
        return _IGNORED  # an old way to charge, which is not ours
    await payments.serialise(session, intent)
    payment = await payments.find_by_intent(session, intent)
    if payment is None or payment.state != payments.PAID:
        event.user_id = _number((found.get("metadata") or {}).get("user_id")) or event.user_id
        return Outcome(waits_for=intent)
    event.user_id = payment.user_id
    await session.flush()
    if await _is_user(session, payment.user_id):
        await disputes.settle(session, payment, event)
        return Outcome()
    if event.type == "charge.refunded":
        back = min(int(found.get("amount_refunded") or 0), payment.amount_cents)
        payment.refunded_cents = max(payment.refunded_cents, back)
    log.error("%s for payment %s of the deleted account %d", event.type, intent, payment.user_id)
    return Outcome(forget=True)


async def _subscribed(session: AsyncSession, event: StripeEvent, checkout: dict[str, Any]) -> Outcome:
    """A checkout of a plan: the subscription's own events say the rest."""
    user_id = _number((checkout.get("metadata") or {}).get("user_id"))
    if user_id is None:
        return _IGNORED
    event.user_id = user_id
    if not await _is_user(session, user_id):
        log.error("subscription %s was bought for the deleted account %d", checkout.get("subscription"), user_id)
        return Outcome(forget=True)
    return Outcome()


async def _subscription(
    session: AsyncSession, settings: Settings, event: StripeEvent, found: dict[str, Any]
) -> Outcome:
    return await _of_user(session, event, found, subscriptions.apply(session, settings, event, found))


async def _invoice(session: AsyncSession, settings: Settings, event: StripeEvent, found: dict[str, Any]) -> Outcome:
    return await _of_user(session, event, found, subscriptions.note_invoice(session, event, found))


async def _of_user(
    session: AsyncSession, event: StripeEvent, found: dict[str, Any], work: "Awaitable[int | None]"
) -> Outcome:
    """For what belongs to a customer: `work` says whose it is, or None when it is nobody's here."""
    user_id = await work
    if user_id is None:
        return _IGNORED
    event.user_id = user_id
    if await _is_user(session, user_id):
        return Outcome(settles=(str(found["id"]),))
    log.error("%s %s is of the deleted account %d: end it at Stripe", event.type, found.get("id"), user_id)
    return Outcome(forget=True)


async def _invoice_payment(
    session: AsyncSession, settings: Settings, event: StripeEvent, found: dict[str, Any]
) -> Outcome:
    """invoice_payment.paid: which payment intent paid an invoice, so that a refund of it finds its payment."""
    intent = (found.get("payment") or {}).get("payment_intent")
    if not isinstance(intent, str):
        return _IGNORED
    await payments.serialise(session, intent)
    await payments.serialise(session, str(found["invoice"]))
    user_id = await subscriptions.note_intent(session, str(found["invoice"]), intent)
    if user_id is None:
        return Outcome(waits_for=str(found["invoice"]))
    event.user_id = user_id
    return Outcome(settles=(intent,))


async def _order_of(session: AsyncSession, checkout: dict[str, Any]) -> tuple[Order | None, int | None]:
    """The locked order that a session is for, and the user that it names; None, None for a session that is not ours."""
    metadata = checkout.get("metadata") or {}
    user_id = _number(metadata.get("user_id"))
    try:
        public_id = UUID(str(metadata.get("order_id") or checkout.get("client_reference_id")))
    except ValueError:
        return None, None
    order = await orders.find(session, public_id)
    return (None if order is None else await orders.lock(session, order.id)), user_id


async def _is_user(session: AsyncSession, user_id: int) -> bool:
    return await session.scalar(select(User.id).where(User.id == user_id)) is not None


def _number(value: Any) -> int | None:
    text = str(value)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


HANDLERS: Final[dict[str, Handler]] = {
    "checkout.session.completed": _checkout_paid,
    "checkout.session.async_payment_succeeded": _checkout_paid,
    "checkout.session.async_payment_failed": _checkout_unpaid,
    "checkout.session.expired": _checkout_unpaid,
    **dict.fromkeys([*disputes.REFUNDS, *disputes.DISPUTES], _returned),
    "customer.subscription.created": _subscription,
    "customer.subscription.updated": _subscription,
    "customer.subscription.deleted": _subscription,
    "invoice.paid": _invoice,
    "invoice.payment_failed": _invoice,
    "invoice_payment.paid": _invoice_payment,
}
