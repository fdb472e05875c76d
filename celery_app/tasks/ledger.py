"""Periodic work on the books."""

from celery import shared_task

from backend.billing import auditing
from celery_app import runtime


@shared_task(name=auditing.VERIFY_TASK)
def verify() -> None:
    current = runtime.get()
    current.run(auditing.verify_hourly(current.db))


@shared_task(name=auditing.SWEEP_TASK)
def sweep_holds() -> None:
    current = runtime.get()
    current.run(auditing.release_abandoned(current.db))
