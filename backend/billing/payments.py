"""Payments: one row for what Stripe took, or is to take, and the entry that it becomes in the ledger."""

import logging
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import ledger, orders
from backend.billing.errors import NotRefundable, PaymentNotFound
from backend.billing.models import Order, Payment
from backend.kit.db import Database
from backend.kit.owner import Owner
from backend.kit.pagination import Page, Window
from backend.providers.stripe import Stripe

log = logging.getLogger(__name__)

PENDING: Final = "pending"
PAID: Final = "paid"
FAILED: Final = "failed"
EXPIRED: Final = "expired"
SUBSCRIPTION: Final = "subscription"


class Contradiction(Exception):
    """What Stripe says does not fit what was ordered: nothing is booked, and somebody must look at it."""


async def expect(session: AsyncSession, order: Order) -> Payment:
    """The payment that an order waits for; made once, under the order's lock or with the order itself."""
    found = await _of_order(session, order.id)
    if found is not None:
        return found
    payment = Payment(
        user_id=order.user_id,
        order_id=order.id,
        kind=order.kind,
        state=PENDING,
        characters=order.characters_bought,
        amount_cents=order.amount_cents,
        currency=order.currency,
    )
    session.add(payment)
    await session.flush()
    return payment


async def note_session(session: AsyncSession, order: Order) -> None:
    await session.execute(
        update(Payment)
        .where(Payment.order_id == order.id, Payment.stripe_session_id.is_(None))
        .values(stripe_session_id=order.stripe_session_id)
    )


async def land(session: AsyncSession, order: Order, checkout: dict[str, Any]) -> bool:
    """Books a paid session of Stripe's on its locked order: payment, purchase in the ledger, order paid.

    False when it was booked before. Raises Contradiction when the session is not what was ordered.
    """
    intent, amount, currency = checkout.get("payment_intent"), checkout.get("amount_total"), checkout.get("currency")
    if order.stripe_session_id is not None and order.stripe_session_id != checkout["id"]:
        raise Contradiction(f"Session {checkout['id']} names order {order.public_id}, whose session is another one.")
    if (amount, currency) != (order.amount_cents, order.currency):
        raise Contradiction(
            f"Session {checkout['id']} was paid with {amount} {currency}; order {order.public_id} is for "
            f"{order.amount_cents} {order.currency}."
        )
    if not isinstance(intent, str):
        raise Contradiction(f"Session {checkout['id']} is paid without a payment intent.")
    payment = await expect(session, order)
    if payment.state == PAID:
        if payment.stripe_payment_intent != intent:
            raise Contradiction(
                f"Order {order.public_id} was paid by {payment.stripe_payment_intent}, and again by {intent}."
            )
        return False
    payment.state, payment.paid_at = PAID, datetime.now(UTC)
    payment.stripe_session_id, payment.stripe_payment_intent = checkout["id"], intent
    order.stripe_session_id = checkout["id"]
    await session.flush()
    await ledger.credit(
        session,
        user_id=payment.user_id,
        kind=ledger.PURCHASE,
        characters=payment.characters,
        reference=f"payment:{payment.public_id}",
        params=entry_params(payment, order),
    )
    await orders.mark_paid(session, order)
    return True


async def record_without_order(session: AsyncSession, user_id: int, checkout: dict[str, Any]) -> None:
    """Money of somebody whose account is gone: written down, and shouted, because only a person can give it back."""
    intent = checkout.get("payment_intent")
    row = await session.scalar(
        select(Payment).where(Payment.stripe_session_id == checkout["id"]).with_for_update(key_share=True)
    )
    if row is not None and row.state == PAID:
        return
    if row is None:
        row = Payment(user_id=user_id, kind=str(checkout.get("metadata", {}).get("payment_type"))[:30])
        session.add(row)
    # What Stripe took, and no characters: there is no balance to put them on.
    row.state, row.paid_at, row.characters = PAID, datetime.now(UTC), 0
    row.amount_cents, row.currency = int(checkout.get("amount_total") or 0), str(checkout.get("currency"))[:3]
    row.stripe_session_id, row.stripe_payment_intent = checkout["id"], intent
    await session.flush()
    log.error(
        "payment %s of %s %s came for the deleted account %d: give it back with `finetuneflow admin refund`",
        *(intent, checkout.get("amount_total"), checkout.get("currency"), user_id),
    )


async def close(session: AsyncSession, order_id: int, state: str) -> None:
    """Ends a payment that does not come, unless it came."""
    await session.execute(
        update(Payment).where(Payment.order_id == order_id, Payment.state == PENDING).values(state=state)
    )


async def serialise(session: AsyncSession, intent: str) -> None:
    """Lets whatever concerns one payment intent happen one after the other, also before it has a row."""
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"payment:{intent}", 0))))


async def find_by_intent(session: AsyncSession, intent: str) -> Payment | None:
    """Locked until the transaction ends."""
    return await session.scalar(
        select(Payment)
        .where(Payment.stripe_payment_intent == intent)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )


async def page(session: AsyncSession, owner: Owner, window: Window) -> Page[Payment]:
    """The owner's payments, newest first."""
    mine = Payment.user_id == owner.id
    rows = await session.scalars(
        select(Payment).where(mine).order_by(Payment.id.desc()).limit(window.limit).offset(window.offset)
    )
    total = await session.scalar(select(func.count()).select_from(Payment).where(mine))
    return Page(rows.all(), int(total or 0))


async def refund(db: Database, stripe: Stripe, payment_id: int, amount_cents: int | None = None) -> str:
    """Has Stripe give back an amount, or all that is left; the characters follow when Stripe says that it did.

    Returns the refund's id. Raises PaymentNotFound or NotRefundable. A repeated call before Stripe's word of the
    first one is the same refund.
    """
    async with db.transaction() as session:
        payment = await session.get(Payment, payment_id)
        if payment is None:
            raise PaymentNotFound()
        left = payment.amount_cents - payment.refunded_cents
        wanted = left if amount_cents is None else amount_cents
        if payment.state != PAID or payment.stripe_payment_intent is None or not 0 < wanted <= left:
            raise NotRefundable(
                refundable_cents=left if payment.state == PAID and payment.stripe_payment_intent else 0,
                amount_cents=payment.amount_cents,
                state=payment.state,
                refunded_cents=payment.refunded_cents,
            )
    return await stripe.refund(
        payment.stripe_payment_intent,
        amount_cents=wanted,
        idempotency_key=f"{payment.public_id}:refund:{payment.refunded_cents}:{wanted}",
    )


def entry_params(payment: Payment, order: Order | None = None) -> dict[str, Any]:
    """What an entry of the ledger says about its payment: numbers and ids, no words."""
    params: dict[str, Any] = {
        "payment_id": payment.id,
        "amount_cents": payment.amount_cents,
        "currency": payment.currency,
    }
    if order is not None:
        params["order"] = str(order.public_id)
    price = (order.quote.get("price_per_character") if order is not None else None) or _price(payment)
    return {**params, "price_per_character": price} if price else params


def _price(payment: Payment) -> str | None:
    if not payment.characters:
        return None
    return f"{Decimal(payment.amount_cents) / 100 / payment.characters:.12f}".rstrip("0")


async def _of_order(session: AsyncSession, order_id: int) -> Payment | None:
    return await session.scalar(
        select(Payment)
        .where(Payment.order_id == order_id)
        .order_by(Payment.id)
        .limit(1)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
