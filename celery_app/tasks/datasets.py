"""Tasks on datasets."""

from typing import Any

from celery import shared_task

from backend.datasets import generation
from backend.datasets.service import GENERATION, PREVIEW
from backend.jobs.running import JobRun
from celery_app.job_task import run_job
from celery_app.runtime import Runtime
from celery_app.wiring import writer


@shared_task(name=PREVIEW.name)
def preview_dataset(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        async with writer(run, current) as writing:
            return await generation.preview(run, writing)

    run_job(job_id, work)


@shared_task(name=GENERATION.name)
def generate_dataset(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        async with writer(run, current) as writing:
            return await generation.generate(run, writing)

    run_job(job_id, work)
