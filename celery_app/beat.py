"""What runs when. Each entry's task claims its tick, so a scheduler that runs twice does no harm."""

from typing import Any

from backend.kit.config import Settings
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
        polling.TASK: {
            "task": polling.TASK,
            "schedule": polling.PERIOD_SECONDS,
            "options": {"queue": "default", "expires": polling.PERIOD_SECONDS * 2, "retry": False},
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
