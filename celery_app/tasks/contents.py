"""Tasks on contents."""

from typing import Any

from celery import shared_task

from backend.contents import chunk_job
from backend.contents.service import CHUNKING
from backend.jobs.running import JobRun
from celery_app.job_task import run_job
from celery_app.runtime import Runtime
from celery_app.wiring import token_counter


@shared_task(name=CHUNKING.name)
def generate_chunks(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await chunk_job.run(run, current.storage, await token_counter(run, current))

    run_job(job_id, work)
