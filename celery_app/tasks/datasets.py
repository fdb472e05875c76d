"""Tasks on datasets."""

from typing import Any

from celery import shared_task

from backend.datasets import chunking_first, generation, importing, previewing
from backend.datasets.service import GENERATION, PREPARING, PREVIEW, split_share
from backend.datasets.uploads import IMPORTING
from backend.jobs.running import JobRun
from celery_app.job_task import run_job
from celery_app.runtime import Runtime
from celery_app.wiring import token_counter, writer


@shared_task(name=PREVIEW.name)
def preview_dataset(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        async with writer(run, current) as writing:
            return await previewing.preview(run, writing)

    run_job(job_id, work)


@shared_task(name=PREPARING.name)
def prepare_contents(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        folder = current.settings.data_dir / "chunking"
        counter = await token_counter(run, current)
        return await chunking_first.prepare(run, current.settings, current.storage, counter, folder)

    run_job(job_id, work)


@shared_task(name=GENERATION.name)
def generate_dataset(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        async with writer(run, current) as writing:
            return await generation.generate(run, writing, current.storage)

    run_job(job_id, work)


@shared_task(name=IMPORTING.name)
def import_dataset(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        counter = await token_counter(run, current)
        return await importing.import_rows(run, current.storage, counter, train_share=split_share)

    run_job(job_id, work)
