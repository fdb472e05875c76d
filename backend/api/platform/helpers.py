"""Transcripts of YouTube videos: at once from captions, or by a job that also hears the sound."""

from contextlib import suppress
from typing import Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel

from backend.api.auth import ClaimsDep, authenticate
from backend.api.errors import error_responses
from backend.api.language import ReaderLanguage, told
from backend.api.platform.contents import RowNumber, Url
from backend.api.services import Services, ServicesDep
from backend.contents import queries
from backend.contents.transcription import service
from backend.contents.transcription.errors import ContentIdRequired
from backend.contents.transcription.transcripts import text_of, text_of_stored, transcript_of
from backend.jobs import queries as job_queries
from backend.jobs.states import JobState
from backend.kit.language import Language
from backend.kit.owner import Owner
from backend.providers.youtube.addresses import video_id
from backend.providers.youtube.captions import find_captions
from backend.storage import BlobNotFound

# No Idempotency-Key: a request that is sent again finds the job that the first one started.
router = APIRouter(prefix="/helpers", tags=["helpers"])

TaskStatus = Literal["processing", "completed", "error", "cancelled"]


class VideoIn(BaseModel):
    """`content_id` is that of a content of the type youtube; it is needed for `async_process`."""

    video_url: Url
    async_process: bool = False
    content_id: RowNumber | None = None


class TranscriptOut(BaseModel):
    """`language` is ISO 639-1; times in seconds."""

    transcript: str
    source: str
    language: str | None
    duration_seconds: float | None


class StartedOut(BaseModel):
    task_id: UUID
    status: TaskStatus
    message: str
    check_endpoint: str


class TranscriptStatusOut(BaseModel):
    """`progress` in percent. `error` is the sentence of `error_code`."""

    task_id: UUID
    status: TaskStatus
    progress: int
    message: str
    transcript: str | None = None
    source: str | None = None
    error: str | None = None
    error_code: str | None = None


@router.post("/video-transcript", responses=error_responses(400, 401, 404, 409, 503))
async def transcribe_video(
    body: VideoIn, claims: ClaimsDep, services: ServicesDep, reader: ReaderLanguage
) -> TranscriptOut | StartedOut:
    """What a video's captions say; with `async_process` a job that also writes down its sound where it has none."""
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
    video = video_id(body.video_url)
    if body.async_process:
        return await _started(body, video, owner, services, reader)
    # No transaction is open while YouTube is asked.
    settings = services.settings
    captions = await find_captions(
        video,
        languages=settings.youtube_languages,
        max_minutes=settings.youtube_max_minutes,
        proxy_url=settings.youtube_proxy_url.get_secret_value(),
    )
    found = transcript_of(captions)
    return TranscriptOut(
        transcript=text_of(found),
        source=found.source,
        language=found.language,
        duration_seconds=found.duration_seconds,
    )


@router.get("/transcript-status/{task_id}", responses=error_responses(401, 404))
async def transcript_status(
    task_id: UUID, claims: ClaimsDep, services: ServicesDep, reader: ReaderLanguage
) -> TranscriptStatusOut:
    """How far a job of the caller's is, and the transcript once it is there."""
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        job = await job_queries.get_job(session, owner, task_id)
        content = await queries.find_of_job(session, job.id) if job.state == JobState.SUCCESS else None
    shown = TranscriptStatusOut(
        task_id=job.public_id,
        status=_STATUSES[job.state],
        progress=round(job.progress_pct),
        message=job.message,
        error=told(reader, job.error_code, job.error_message, job.error_context),
        error_code=job.error_code,
    )
    if content is not None and content.text_key is not None:
        # Deleted a moment ago: then there is no transcript any more.
        with suppress(BlobNotFound):
            shown.transcript = text_of_stored(await services.storage.get_bytes(content.text_key))
            shown.source = content.meta.get("source")
    return shown


async def _started(body: VideoIn, video: str, owner: Owner, services: Services, reader: Language) -> StartedOut:
    if body.content_id is None:
        raise ContentIdRequired()
    async with services.db.transaction() as session:
        content = await queries.get_by_number(session, owner, body.content_id)
        job = await service.ensure_youtube(session, services.broker, content, video)
    return StartedOut(
        task_id=job.public_id,
        status=_STATUSES[job.state],
        message=_STARTED[reader],
        check_endpoint=f"/api/helpers/transcript-status/{job.public_id}",
    )


_STARTED: dict[Language, str] = {
    "en": "The transcription was started in the background",
    "fr": "La transcription a été lancée en arrière-plan",
}
_STATUSES: dict[str, TaskStatus] = {
    "queued": "processing",
    "running": "processing",
    "success": "completed",
    "failed": "error",
    "cancelled": "cancelled",
}
