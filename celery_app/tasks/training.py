"""Tasks on fine-tunings."""

import logging
from typing import Any

from celery import shared_task

from backend.jobs.running import JobRun
from backend.kit.crypto import Sealer
from backend.training import (
    adapter_files,
    answer_judging,
    checkpoint_store,
    cleanup,
    exports,
    hardware,
    local,
    playground,
    polling,
    pushing,
    remote,
)
from backend.training.answer_judging import JUDGING
from backend.training.fine_tunings import SUBMISSION, TRAINING
from backend.training.playground import ASKING
from backend.training.pushing import PUSHING
from backend.training.service import COMPARISON, EXPORTING, MODEL_EXPORTING
from celery_app import runtime
from celery_app.job_task import run_job
from celery_app.runtime import Runtime
from celery_app.wiring import answer_judge, bench, library

log = logging.getLogger(__name__)


@shared_task(name=TRAINING.name)
def train(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await local.train(run, bench(current))

    run_job(job_id, work)
    current = runtime.get()
    try:
        current.run(checkpoint_store.forget_ended(current.db, current.storage))
    except Exception as error:  # the job is over and done; the hourly sweep does what is left
        log.warning("checkpoints of ended runs stay for now: %r", error)


@shared_task(name=COMPARISON.name)
def compare(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await local.compare(run, bench(current))

    run_job(job_id, work)


@shared_task(name=ASKING.name)
def ask(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await playground.run_question(run, bench(current))

    run_job(job_id, work)


@shared_task(name=SUBMISSION.name)
def submit(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await remote.submit(run, current.settings, Sealer(current.settings.sealing_keys))

    run_job(job_id, work)


@shared_task(name=polling.TASK)
def poll() -> None:
    current = runtime.get()
    sealer = Sealer(current.settings.sealing_keys)
    current.run(polling.tick(current.db, current.settings, sealer, current.events))


@shared_task(name=EXPORTING.name)
def export(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await exports.export(run, current.settings, current.storage, library(current))

    run_job(job_id, work)


@shared_task(name=MODEL_EXPORTING.name)
def export_models(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await exports.export(run, current.settings, current.storage, library(current))

    run_job(job_id, work)


@shared_task(name=PUSHING.name)
def push(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await pushing.push(run, current.settings, current.storage)

    run_job(job_id, work)


@shared_task(name=JUDGING.name)
def judge_answers(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        async with answer_judge(run, current) as model:
            return await answer_judging.judge_answers(run, current.storage, model)

    run_job(job_id, work)


@shared_task(name="hardware.report")
def report_hardware() -> None:
    current = runtime.get()

    async def report() -> None:
        found = await hardware.probe(current.settings.training_device)
        async with current.db.transaction() as session:
            await hardware.save(session, hardware.worker_name(), found)
        await cleanup.clear_run_folders(current.db, current.settings)
        await adapter_files.forget_deleted(current.db, current.settings)
        await checkpoint_store.forget_ended(current.db, current.storage)

    current.run(report())


@shared_task(name="storage.sweep")
def sweep_storage() -> None:
    current = runtime.get()

    async def sweep() -> None:
        await checkpoint_store.forget_ended(current.db, current.storage)
        await cleanup.delete_orphaned_files(current.db, current.storage)

    current.run(sweep())
