"""Takes orders further: each step in a transaction of its own, by one process at a time, until there is to wait."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import orders, payments
from backend.billing.models import Order
from backend.jobs.service import claim_tick
from backend.kit.errors import DomainError
from backend.launches import steps, stopping
from backend.launches.errors import CheckoutTimedOut, LaunchBroken
from backend.launches.tools import Tools
from backend.projects.models import Project
from backend.users.models import User

log = logging.getLogger(__name__)

TICK: Final = "launches.tick"
PERIOD_SECONDS: Final = 3.0
_BATCH: Final = 200
_AT_ONCE: Final = 4
# One order has no more than some five steps until it has to wait.
_MOST_STEPS: Final = 10
# Failures in a row, some two hours, after which a launch is given up.
GIVE_UP: Final = 20
_LONGEST_PAUSE: Final = 600.0


async def tick(tools: Tools) -> int:
    """One period of the scheduler, which may tick twice. Returns how many orders were due."""
    async with tools.db.transaction() as session:
        if not await claim_tick(session, TICK, PERIOD_SECONDS):
            return 0
    return await advance_due(tools)


async def advance_due(tools: Tools) -> int:
    """Takes every order further that is due; one that goes wrong is no matter of the others."""
    due = select(Order.id).where(Order.state.in_(orders.LIVE), Order.next_step_at <= func.clock_timestamp())
    async with tools.db.transaction() as session:
        ids = (await session.scalars(due.order_by(Order.next_step_at).limit(_BATCH))).all()
    free = asyncio.Semaphore(_AT_ONCE)

    async def one(order_id: int) -> None:
        async with free:
            await advance(tools, order_id)

    await asyncio.gather(*(one(order_id) for order_id in ids))
    return len(ids)


async def advance(tools: Tools, order_id: int) -> None:
    """Takes one order as far as it goes now; nothing happens while another process has it. Never raises."""
    for _ in range(_MOST_STEPS):
        try:
            async with tools.db.transaction() as session:
                order = await _take(session, order_id)
                if order is None:
                    return
                await _step(session, tools, order)
        except Exception as error:
            log.warning("order %d could not be taken further: %r", order_id, error, exc_info=_is_ours(error))
            await _postpone(tools, order_id)
            return


async def _take(session: AsyncSession, order_id: int) -> Order | None:
    """The order, locked after its user and project as a deletion locks them; None when it is not due, or not free."""
    found = await session.get(Order, order_id)
    if found is None:
        return None
    user = select(User.id).where(User.id == found.user_id).with_for_update(read=True, key_share=True, skip_locked=True)
    if await session.scalar(user) is None:
        return None
    if found.project_id is not None:
        await session.execute(
            select(Project.id).where(Project.id == found.project_id).with_for_update(read=True, key_share=True)
        )
    return await session.scalar(
        select(Order)
        .where(Order.id == order_id, Order.state.in_(orders.LIVE), Order.next_step_at <= func.clock_timestamp())
        .with_for_update(key_share=True, skip_locked=True)
        .execution_options(populate_existing=True)
    )


async def _step(session: AsyncSession, tools: Tools, order: Order) -> None:
    if order.state == orders.PENDING_PAYMENT:
        await orders.expire(session, order, CheckoutTimedOut())
        await payments.close(session, order.id, payments.EXPIRED)
        return
    if order.error_code is not None:
        await stopping.wind_down(session, tools, order)
        return
    try:
        async with session.begin_nested():
            await steps.forward(session, tools, order)
    except DomainError as error:
        if error.retryable:
            raise
        await session.refresh(order)
        await stopping.stop(session, tools, order, error)
    order.step_failures = 0


async def _postpone(tools: Tools, order_id: int) -> None:
    """The step is tried again later: after 2, 4, 8 seconds and so on, until it is given up."""
    try:
        async with tools.db.transaction() as session:
            order = await orders.lock(session, order_id)
            if order is None or order.state not in orders.LIVE:
                return
            order.step_failures += 1
            steps.wait(order, min(2.0**order.step_failures, _LONGEST_PAUSE))
            if order.step_failures >= GIVE_UP and order.error_code is None and order.state != orders.PENDING_PAYMENT:
                orders.note(order, LaunchBroken())
                order.next_step_at = datetime.now(UTC)
    except Exception:
        log.exception("order %d could not be postponed; the next tick tries it again", order_id)


def _is_ours(error: Exception) -> bool:
    return not isinstance(error, DomainError)
