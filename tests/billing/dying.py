"""Runs one job in a process that is killed (SIGKILL) at a named point: `python -m tests.billing.dying JOB POINT`."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from backend.billing import charging
from backend.datasets import concluding, dividing, reading
from celery_app import job_task
from celery_app.app import app


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_before(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(*_: Any, **__: Any) -> None:
        die()

    return call


def dying_after(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(*values: Any, **named: Any) -> None:
        await function(*values, **named)
        die()

    return call


# Where a worker is killed, in the order in which a job comes by.
POINTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "once it is noted what it reads": (reading, "note", dying_after),
    "before the dataset is ready": (dividing, "divide", dying_before),
    "in the transaction that makes it ready": (concluding, "_judged", dying_after),
    "before the job is ended": (job_task, "_finish", dying_before),
    "after the hold is settled, before the commit": (charging, "charge", dying_after),
    "after the job is ended": (job_task, "publish_end", dying_before),
}


if __name__ == "__main__":
    job_id, point = int(sys.argv[1]), sys.argv[2]
    app.loader.import_default_modules()
    module, name, wrap = POINTS[point]
    setattr(module, name, wrap(getattr(module, name)))
    app.tasks["dataset_generate"].run(job_id)
