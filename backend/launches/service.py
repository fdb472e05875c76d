"""What people do with launches: start one, free or to be paid, and cancel it."""

from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import checkout, orders, payments
from backend.billing.errors import InsufficientCharacters
from backend.billing.models import Order
from backend.billing.orders import Kind
from backend.billing.pricing import Quote
from backend.kit.broker import Broker
from backend.kit.db import after_commit
from backend.kit.owner import Owner
from backend.launches import steps, stopping
from backend.launches.errors import ContentLengthUnknown, OrderCancelled, OrderEnded
from backend.launches.tools import Tools
from backend.launches.wishes import Granted, Wish, check
from backend.projects import queries as project_queries
from backend.training import fine_tunings

# The Celery task that takes an order further at once; without it the next tick does.
ADVANCE = "launches.advance"
# A free quota or balance that another launch took meanwhile is counted anew.
_ATTEMPTS = 3


async def launch(session: AsyncSession, tools: Tools, owner: Owner, project_id: int, wish: Wish, kind: Kind) -> Order:
    """Begins a launch that costs nothing, or writes down the order for one that has to be paid (`amount_cents`).

    Raises ProjectNotFound and what `wishes.check` raises; of a launch to be paid ContentLengthUnknown and
    PaymentsNotConfigured, before anything is written.
    """
    project = await project_queries.get_by_number(session, owner, project_id)
    granted = await check(session, tools.settings, tools.library, project, wish)
    await fine_tunings.lock_project(session, project)
    for _ in range(_ATTEMPTS):
        price = await steps.quote(session, tools.settings, owner.id, granted.characters)
        if not price.is_free:
            break
        order = await _begin_free(session, tools, granted, price, kind)
        if order is not None:
            return order
    return await _order(session, tools, granted, price, kind)


async def cancel(session: AsyncSession, tools: Tools, order: Order) -> Order:
    """Ends an order, whose payment page the caller has closed. A second cancel is no error. Raises OrderEnded."""
    row = await _lock(session, order)
    if row.error_code == OrderCancelled.code:
        return row
    if row.state == orders.PENDING_PAYMENT:
        await orders.expire(session, row, OrderCancelled())
        await payments.close(session, row.id, payments.EXPIRED)
    elif row.state in (orders.PAID, orders.RUNNING):
        await stopping.stop(session, tools, row, OrderCancelled())
        kick(session, tools.broker, row.id)
    else:
        raise OrderEnded(state=row.state)
    await session.flush()
    await session.refresh(row)
    return row


def kick(session: AsyncSession, broker: Broker, order_id: int) -> None:
    """Has a worker take the order further once the transaction is committed."""

    async def send() -> None:
        await broker.send(ADVANCE, "default", order_id)

    after_commit(session, send)


async def _begin_free(session: AsyncSession, tools: Tools, granted: Granted, price: Quote, kind: Kind) -> Order | None:
    """None when others took meanwhile what would have made it free."""
    try:
        async with session.begin_nested():
            order = await _write(session, granted, price, kind, orders.PAID)
            await steps.begin(session, tools, order, granted, price)
    except InsufficientCharacters:
        return None
    await session.refresh(order)
    kick(session, tools.broker, order.id)
    return order


async def _order(session: AsyncSession, tools: Tools, granted: Granted, price: Quote, kind: Kind) -> Order:
    if granted.unknown:
        raise ContentLengthUnknown(content_ids=granted.unknown)
    checkout.require_payments(tools.settings)
    order = await _write(session, granted, price, kind, orders.PENDING_PAYMENT)
    await payments.expect(session, order)
    return order


async def _write(session: AsyncSession, granted: Granted, price: Quote, kind: Kind, state: orders.State) -> Order:
    order = await orders.create(
        session,
        user_id=granted.project.user_id,
        kind=kind,
        quote=price,
        params={**granted.wish.as_params(), "warnings": granted.run.base.warnings},
        state=state,
        project_id=granted.project.id,
    )
    order.quote = {**order.quote, "unknown_contents": granted.unknown}
    await session.flush()
    return order


async def _lock(session: AsyncSession, order: Order) -> Order:
    row = await orders.lock(session, order.id)
    if row is None:
        raise OrderEnded(state="deleted")
    return row
