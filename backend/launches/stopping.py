"""The end of a launch that does not come to its goal: what it began is ended, and what it held goes back."""

from contextlib import suppress

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import ledger, orders
from backend.billing.models import Hold, Order
from backend.datasets import queries as dataset_queries
from backend.datasets.models import Dataset
from backend.jobs import service as jobs
from backend.jobs.errors import JobAlreadyEnded
from backend.jobs.states import LIVE
from backend.kit import messages
from backend.kit.errors import DomainError
from backend.launches import steps
from backend.launches.errors import LaunchRunCancelled, OrderCancelled
from backend.launches.tools import Tools
from backend.training import fine_tunings, planned
from backend.training.errors import FineTuningEnded
from backend.training.models import FineTuning
from backend.training.statuses import Status
from backend.users import mails
from backend.users.models import User

# A worker sees a cancel within two seconds.
_STOP_SECONDS = 2.0
# Whoever did this knows of it.
_BY_USER = (OrderCancelled.code, LaunchRunCancelled.code)


async def stop(session: AsyncSession, tools: Tools, order: Order, error: DomainError) -> None:
    """Notes why the order ends, and ends it as soon as nothing of it runs any more."""
    orders.note(order, error)
    await session.flush()
    await wind_down(session, tools, order)


async def wind_down(session: AsyncSession, tools: Tools, order: Order) -> None:
    """Ends jobs, rows, hold and at last the order itself; comes back later where a worker has to stop first."""
    dataset = None if order.dataset_id is None else await session.get(Dataset, order.dataset_id, populate_existing=True)
    if dataset is not None and not await _stop_making(session, tools, dataset):
        steps.wait(order, _STOP_SECONDS)
        return
    if order.fine_tuning_id is not None:
        await _stop_run(session, tools, order)
    if dataset is not None:
        unfinished = (Dataset.id == dataset.id, Dataset.status == "processing")
        await session.execute(update(Dataset).where(*unfinished).values(status="error"))
    hold = None
    if order.hold_id is not None:
        await ledger.release(session, order.hold_id)
        hold = await session.get(Hold, order.hold_id, populate_existing=True)
    was_charged = hold is not None and hold.state == ledger.SETTLED
    state: orders.State = orders.CREDITED if order.paid_at is not None and not was_charged else orders.FAILED
    if await orders.end(session, order, state) and order.paid_at is not None:
        await _tell(session, tools, order)


async def _stop_making(session: AsyncSession, tools: Tools, dataset: Dataset) -> bool:
    """False while a worker still writes into the dataset."""
    job = await dataset_queries.find_making(session, dataset)
    if job is None:
        return True
    with suppress(JobAlreadyEnded):
        job = await jobs.cancel(session, tools.events, job)
    await session.refresh(job)
    return job.state not in LIVE


async def _stop_run(session: AsyncSession, tools: Tools, order: Order) -> None:
    assert order.fine_tuning_id is not None
    by_user = order.error_code in _BY_USER
    status = Status.CANCELLED if by_user else Status.ERROR
    told = order.error_message, order.error_code, order.params.get("error_context")
    if await planned.give_up(session, order.fine_tuning_id, status, *told):
        return
    run = await session.get(FineTuning, order.fine_tuning_id, populate_existing=True)
    if run is not None and by_user:
        with suppress(FineTuningEnded):
            await fine_tunings.cancel(session, tools.events, run, order.error_message)


async def _tell(session: AsyncSession, tools: Tools, order: Order) -> None:
    """By mail, why something that was paid came to nothing, or to a part, and where the money is."""
    if order.error_code in _BY_USER or order.error_message is None:
        return
    user = await session.get_one(User, order.user_id)
    reason = order.error_message
    if user.language == "fr" and order.error_code is not None:
        reason = messages.french_sentence(order.error_code, order.params.get("error_context") or {}) or reason
    kind = "launch_credited" if order.state == orders.CREDITED else "launch_failed"
    link = tools.post.page("dashboard/billing", order=str(order.public_id))
    fields = {"order": order.id, "characters": order.characters_bought, "reason": reason, "link": link}
    tools.post.send_after_commit(session, mails.compose(kind, user, **fields))
