"""Tasks on fine-tunings."""

import socket
from typing import Any

from celery import shared_task

from backend.jobs.running import JobRun
from backend.training import cleanup, exports, hardware, local
from backend.training.service import COMPARISON, EXPORTING, TRAINING
from celery_app import runtime
from celery_app.job_task import run_job
from celery_app.runtime import Runtime
from celery_app.wiring import bench


@shared_task(name=TRAINING.name)
def train(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await local.train(run, bench(current))

    run_job(job_id, work)


@shared_task(name=COMPARISON.name)
def compare(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await local.compare(run, bench(current))

    run_job(job_id, work)


@shared_task(name=EXPORTING.name)
def export(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await exports.export(run, current.storage)

    run_job(job_id, work)


@shared_task(name="hardware.report")
def report_hardware() -> None:
    current = runtime.get()

    async def report() -> None:
        found = await hardware.probe()
        async with current.db.transaction() as session:
            await hardware.save(session, socket.gethostname(), found)
        await cleanup.clear_run_folders(current.db, current.settings)

    current.run(report())


@shared_task(name="storage.sweep")
def sweep_storage() -> None:
    current = runtime.get()
    current.run(cleanup.delete_orphaned_files(current.db, current.storage))
