"""Tasks on contents."""

from typing import Any

from celery import shared_task

from backend.contents import chunk_job, fetching
from backend.contents.fetching import FETCHING, Fetching
from backend.contents.service import CHUNKING, Limits
from backend.contents.transcription import jobs as transcription_jobs
from backend.contents.transcription.service import TRANSCRIPTION, YOUTUBE
from backend.contents.web.fetch import Fetcher
from backend.jobs.running import JobRun
from celery_app.job_task import run_job
from celery_app.runtime import Runtime
from celery_app.wiring import token_counter, transcription


@shared_task(name=CHUNKING.name)
def generate_chunks(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        folder = current.settings.data_dir / "chunking"
        return await chunk_job.run(run, current.storage, await token_counter(run, current), folder)

    run_job(job_id, work)


@shared_task(name=FETCHING.name)
def fetch_website(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        settings = current.settings
        needs = Fetching(Fetcher.of(settings), Limits.of(settings).extraction, settings.upload_max_project_mb)
        return await fetching.fetch(run, current.storage, needs)

    run_job(job_id, work)


@shared_task(name=TRANSCRIPTION.name)
def transcribe_audio(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await transcription_jobs.transcribe(run, current.storage, transcription(current))

    run_job(job_id, work)


@shared_task(name=YOUTUBE.name)
def transcribe_youtube_video(job_id: int) -> None:
    async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
        return await transcription_jobs.transcribe_video(run, current.storage, transcription(current))

    run_job(job_id, work)
