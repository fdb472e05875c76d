"""Orders: what a user asked for, from the quote to the end of its work. Its callers own the transaction.

States: pending_payment -> paid -> running -> completed | failed | credited; pending_payment -> expired. `credited`
means that nothing was made and that what was paid lies on the balance; `failed` that something was made, or that
nothing was paid. An order that was expired and is paid all the same goes on, unless its user cancelled it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing.errors import OrderNotFound
from backend.billing.models import Hold, Order, Payment
from backend.billing.pricing import Quote
from backend.kit.errors import DomainError
from backend.kit.owner import Owner
from backend.kit.pagination import Page, Window

Kind = Literal["onboarding_characters", "fine_tuning_job", "character_credits"]
ONBOARDING: Final = "onboarding_characters"
LAUNCH: Final = "fine_tuning_job"
CREDITS: Final = "character_credits"

State = Literal["pending_payment", "paid", "running", "completed", "failed", "expired", "credited"]
PENDING_PAYMENT: Final = "pending_payment"
PAID: Final = "paid"
RUNNING: Final = "running"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
EXPIRED: Final = "expired"
CREDITED: Final = "credited"
LIVE: Final = (PENDING_PAYMENT, PAID, RUNNING)
CANCELLED_CODE: Final = "ORDER_CANCELLED"

# Stripe's sessions live for a day; its word of a payment may come somewhat later.
PENDING_HOURS: Final = 25
# A debit or a transfer that was promised takes up to two weeks.
PROMISED_DAYS: Final = 15


async def create(
    session: AsyncSession,
    *,
    user_id: int,
    kind: Kind,
    quote: Quote,
    params: dict[str, Any],
    state: State,
    project_id: int | None = None,
) -> Order:
    """Writes down a request with its price. `characters` of a purchase alone are 0: it has no work."""
    now = datetime.now(UTC)
    order = Order(
        user_id=user_id,
        kind=kind,
        state=state,
        characters=0 if kind == CREDITS else quote.characters,
        characters_bought=quote.characters_bought,
        amount_cents=quote.amount_cents,
        currency=quote.currency,
        quote=quote.as_dict(),
        params=params,
        project_id=project_id,
        next_step_at=now + timedelta(hours=PENDING_HOURS) if state == PENDING_PAYMENT else now,
    )
    session.add(order)
    await session.flush()
    await session.refresh(order)
    return order


async def mark_paid(session: AsyncSession, order: Order) -> bool:
    """After the purchase was posted, in its transaction; False when it was paid before.

    A purchase of characters is complete by this; a launch is due at once. What its user had cancelled is credited.
    """
    row = await lock(session, order.id)
    if row is None or row.paid_at is not None or row.state not in (PENDING_PAYMENT, EXPIRED):
        return False
    row.paid_at = datetime.now(UTC)
    if row.kind == CREDITS:
        row.error_code = row.error_message = None
        _end(row, COMPLETED)
    elif row.error_code == CANCELLED_CODE:
        _end(row, CREDITED)
    else:
        row.state = PAID
        row.error_code = row.error_message = row.ended_at = None
        row.next_step_at = row.paid_at
    await session.flush()
    return True


async def await_bank(session: AsyncSession, order: Order) -> None:
    """The payment was promised and is on its way: the order does not expire until it should have come."""
    row = await lock(session, order.id)
    if row is not None and row.state == PENDING_PAYMENT:
        row.next_step_at = datetime.now(UTC) + timedelta(days=PROMISED_DAYS)
        await session.flush()


async def expire(session: AsyncSession, order: Order, error: DomainError | None = None) -> bool:
    """Ends an order that nobody paid; False when it is no longer waiting for that."""
    row = await lock(session, order.id)
    if row is None or row.state != PENDING_PAYMENT:
        return False
    if error is not None:
        note(row, error)
    _end(row, EXPIRED)
    await session.flush()
    return True


async def fail(session: AsyncSession, order: Order, error: DomainError) -> bool:
    """Ends an order whose work cannot be done; False when it has ended already. Its hold is the caller's matter."""
    return await end(session, order, FAILED, error)


async def end(session: AsyncSession, order: Order, state: State, error: DomainError | None = None) -> bool:
    """Ends a live order in one of the last states; False when it has ended already."""
    row = await lock(session, order.id)
    if row is None or row.state not in LIVE:
        return False
    if error is not None:
        note(row, error)
    _end(row, state)
    await session.flush()
    return True


async def lock(session: AsyncSession, order_id: int) -> Order | None:
    """The order, read anew and held until the transaction ends; None when it went with its account."""
    return await session.scalar(
        select(Order)
        .where(Order.id == order_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )


async def find(session: AsyncSession, public_id: UUID) -> Order | None:
    """By the id that Stripe was told."""
    return await session.scalar(select(Order).where(Order.public_id == public_id))


async def get_by_number(session: AsyncSession, owner: Owner, number: int) -> Order:
    """By the integer id that the platform face shows. Raises OrderNotFound."""
    order = await session.scalar(select(Order).where(Order.id == number, Order.user_id == owner.id))
    if order is None:
        raise OrderNotFound()
    return order


async def page_by_number(
    session: AsyncSession, owner: Owner, window: Window, *, state: str | None = None, kind: str | None = None
) -> Page[Order]:
    """The owner's orders, newest first."""
    conditions = [Order.user_id == owner.id]
    if state is not None:
        conditions.append(Order.state == state)
    if kind is not None:
        conditions.append(Order.kind == kind)
    rows = await session.scalars(
        select(Order).where(*conditions).order_by(Order.id.desc()).limit(window.limit).offset(window.offset)
    )
    total = await session.scalar(select(func.count()).select_from(Order).where(*conditions))
    return Page(rows.all(), int(total or 0))


async def holds_of(session: AsyncSession, orders: Sequence[Order]) -> dict[int, Hold]:
    """The hold that each order has now, or had last, by the order's number."""
    numbers = {order.hold_id: order.id for order in orders if order.hold_id is not None}
    if not numbers:
        return {}
    rows = await session.scalars(select(Hold).where(Hold.id.in_(numbers)))
    return {numbers[hold.id]: hold for hold in rows}


async def payments_of(session: AsyncSession, orders: Sequence[Order]) -> dict[int, Payment]:
    """The money that Stripe took for each order, by the order's number."""
    if not orders:
        return {}
    rows = await session.scalars(
        select(Payment).where(Payment.order_id.in_([order.id for order in orders])).order_by(Payment.id)
    )
    return {payment.order_id: payment for payment in rows if payment.order_id is not None}


def note(order: Order, error: DomainError) -> None:
    """Writes down why, with the values that its sentence needs in another language."""
    order.error_code, order.error_message = error.code, error.detail
    order.params = {**order.params, "error_context": error.context}


def _end(order: Order, state: State) -> None:
    order.state = state
    order.ended_at = datetime.now(UTC)
    order.next_step_at = None
