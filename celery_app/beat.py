"""What runs when. Each entry's task claims its tick, so a scheduler that runs twice does no harm."""

from typing import Any

from backend.billing import auditing, inbox, reconciling
from backend.kit.config import Settings
from backend.launches import advancing
from backend.training import polling


def schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Messages expire with their period: after an outage, one tick is enough."""
    every = settings.job_sweep_seconds
    return {
        "jobs.sweep": {
            "task": "jobs.sweep",
            "schedule": every,
            "options": {"queue": "control", "expires": max(every, 1.0) * 2, "retry": False},
        },
        advancing.TICK: {
            "task": advancing.TICK,
            "schedule": advancing.PERIOD_SECONDS,
            "options": {"queue": "default", "expires": advancing.PERIOD_SECONDS * 2, "retry": False},
        },
        polling.TASK: {
            "task": polling.TASK,
            "schedule": polling.PERIOD_SECONDS,
            "options": {"queue": "default", "expires": polling.PERIOD_SECONDS * 2, "retry": False},
        },
        auditing.SWEEP_TASK: {
            "task": auditing.SWEEP_TASK,
            "schedule": auditing.SWEEP_SECONDS,
            "options": {"queue": "control", "expires": auditing.SWEEP_SECONDS, "retry": False},
        },
        auditing.VERIFY_TASK: {
            "task": auditing.VERIFY_TASK,
            "schedule": auditing.VERIFY_SECONDS,
            "options": {"queue": "default", "expires": auditing.VERIFY_SECONDS, "retry": False},
        },
        inbox.SWEEP_TASK: {
            "task": inbox.SWEEP_TASK,
            "schedule": inbox.SWEEP_SECONDS,
            "options": {"queue": "control", "expires": inbox.SWEEP_SECONDS * 2, "retry": False},
        },
        reconciling.TASK: {
            "task": reconciling.TASK,
            # It claims one tick a day; asked by the hour, so that a restart at the wrong time does not skip a day.
            "schedule": 3600.0,
            "options": {"queue": "default", "expires": 3600.0, "retry": False},
        },
        "idempotency.sweep": {
            "task": "idempotency.sweep",
            "schedule": 3600.0,
            "options": {"queue": "control", "expires": 3600.0, "retry": False},
        },
        "storage.sweep": {
            "task": "storage.sweep",
            "schedule": 3600.0,
            "options": {"queue": "default", "expires": 3600.0, "retry": False},
        },
        "hardware.report": {
            "task": "hardware.report",
            "schedule": 60.0,
            "options": {"queue": "gpu", "expires": 60.0, "retry": False},
        },
    }
