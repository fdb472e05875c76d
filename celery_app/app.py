"""The Celery application: `celery -A celery_app.app worker -Q default`."""

from typing import Any

from celery.signals import setup_logging, worker_process_shutdown, worker_shutdown, worker_shutting_down

import backend.models  # noqa: F401  (every mapped class must be known before the first query)
from backend.kit.broker import make_celery
from backend.kit.config import get_settings
from backend.kit.log import configure_logging
from celery_app import beat, runtime, stopping

app = make_celery(get_settings().redis_url)
app.conf.update(
    include=[
        "celery_app.tasks.contents",
        "celery_app.tasks.datasets",
        "celery_app.tasks.jobs",
        "celery_app.tasks.launches",
        "celery_app.tasks.ledger",
        "celery_app.tasks.payments",
        "celery_app.tasks.training",
        "celery_app.tasks.users",
    ],
    beat_schedule=beat.schedule(get_settings()),
)


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    settings = get_settings()
    configure_logging(settings.log_level, json=settings.log_json)


@worker_shutting_down.connect
def _put_jobs_back(**_: Any) -> None:
    stopping.announce()


@worker_process_shutdown.connect
@worker_shutdown.connect
def _close_runtime(**_: Any) -> None:
    runtime.close()
