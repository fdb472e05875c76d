"""Periodic work on the jobs table."""

from celery import shared_task

from backend.jobs import service
from celery_app import runtime


@shared_task(name="jobs.sweep")
def sweep() -> None:
    current = runtime.get()
    settings = current.settings
    current.run(
        service.sweep(
            current.db,
            current.broker,
            current.redis,
            period_seconds=settings.job_sweep_seconds,
            resend_seconds=settings.job_resend_seconds,
        )
    )
