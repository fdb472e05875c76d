"""The product's Celery app with one more kind of job: `celery -A tests.faults.worker_app worker ...`."""

import asyncio
import os
import random
import signal
import time
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs import kinds
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.running import JobRun
from celery_app.app import app
from celery_app.job_task import run_job
from celery_app.runtime import Runtime

# No column is unique: the tables count what happened, and stop nothing from happening twice.
TABLES = """
CREATE TABLE starts (job_id bigint NOT NULL, fence int NOT NULL, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE effects (job_id bigint NOT NULL, fence int NOT NULL, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE steps (job_id bigint NOT NULL, fence int NOT NULL, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE endings (job_id bigint NOT NULL, state text NOT NULL, at timestamptz DEFAULT clock_timestamp());
"""


async def _note_ending(session: AsyncSession, job: Job) -> None:
    await session.execute(text("INSERT INTO endings VALUES (:id, :state)"), {"id": job.id, "state": job.state})


# Killed every two seconds, some jobs lose many workers; none may become a dead letter by that alone.
KIND = kinds.register(JobKind("faults.work", "default", max_attempts=100, ending=_note_ending))


# Two kinds that share the queue whose turns are kept.
LONG, SHORT = (kinds.register(JobKind(f"faults.{name}", "gpu")) for name in ("long", "short"))


@app.task(name=KIND.name)  # type: ignore[untyped-decorator]
def work(job_id: int) -> None:
    run_job(job_id, _work)


@app.task(name=LONG.name)  # type: ignore[untyped-decorator]
def work_long(job_id: int) -> None:
    run_job(job_id, _work)


@app.task(name=SHORT.name)  # type: ignore[untyped-decorator]
def work_short(job_id: int) -> None:
    run_job(job_id, _work)


async def _work(run: JobRun, _current: Runtime) -> dict[str, Any]:
    """Notes its start, takes `seconds` in steps, and has its effect once: it looks under the job's lock first."""
    row = {"id": run.claim.id, "fence": run.claim.fence}
    async with run.writing() as session:
        await session.execute(text("INSERT INTO starts VALUES (:id, :fence)"), row)
    if run.params.get("block"):
        time.sleep(run.params["block"])
    deadline = time.monotonic() + run.params.get("seconds", random.uniform(0.02, 0.3))
    while time.monotonic() < deadline:
        async with run.writing() as session:
            await session.execute(text("INSERT INTO steps VALUES (:id, :fence)"), row)
            if run.params.get("freeze") and run.claim.fence == 1:
                os.kill(os.getpid(), signal.SIGSTOP)  # inside the transaction, with the job's row locked
        await asyncio.sleep(0.1)
    async with run.writing() as session:
        done = await session.scalar(text("SELECT count(*) FROM effects WHERE job_id = :id"), row)
        if not done:
            await session.execute(text("INSERT INTO effects VALUES (:id, :fence)"), row)
    await run.emit("step", {"fence": run.claim.fence})
    return {"fence": run.claim.fence}
