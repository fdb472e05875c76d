"""Stripe's events, handled from their rows, and compared with Stripe's own list."""

from celery import shared_task

from backend.billing import inbox, reconciling
from backend.billing.inbox import Handled
from backend.launches import service as launches
from backend.providers.stripe import Stripe
from celery_app import runtime
from celery_app.runtime import Runtime


@shared_task(name=inbox.HANDLE_TASK)
def handle(number: int) -> None:
    current = runtime.get()
    _start_work(current, current.run(inbox.handle(current.db, current.settings, number)))


@shared_task(name=inbox.SWEEP_TASK)
def sweep() -> None:
    current = runtime.get()
    _start_work(current, current.run(inbox.sweep(current.db, current.settings)))


@shared_task(name=reconciling.TASK)
def reconcile() -> None:
    current = runtime.get()

    async def compare() -> Handled:
        stripe = Stripe(current.settings)
        try:
            report = await reconciling.tick(current.db, stripe, current.settings)
        finally:
            await stripe.close()
        return Handled() if report is None else Handled(paid_orders=report.paid_orders)

    _start_work(current, current.run(compare()))


def _start_work(current: Runtime, handled: Handled) -> None:
    """What was just paid need not wait for the next tick of the launches."""
    for order_id in handled.paid_orders:
        current.broker.send_now(launches.ADVANCE, "default", (order_id,))
