"""Periodic work on what is kept for users."""

from celery import shared_task

from backend.users import forgetting, idempotency
from celery_app import runtime


@shared_task(name="idempotency.sweep")
def forget_old_answers() -> None:
    """Forgets kept answers, and logins and tokens that ended long ago."""
    current = runtime.get()
    current.run(idempotency.forget_old(current.db))
    current.run(forgetting.forget_ended(current.db))
