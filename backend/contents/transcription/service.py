"""Starts the jobs that bring videos and recordings to text, and says what becomes of a content when they end."""

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from backend.contents import ending
from backend.contents.errors import UnknownContent
from backend.contents.models import Content
from backend.contents.transcription.errors import ContentNotAVideo, TranscriptionCancelled
from backend.contents.transcription.transcripts import VTT
from backend.jobs import kinds, queue
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import LIVE
from backend.kit.broker import Broker
from backend.projects.models import Project
from backend.providers.youtube.addresses import video_id


def new_video(folder: str, *, url: str, name: str, description: str | None) -> Content:
    """The row of a video whose text is still to be had. It owns its storage keys from the start, so that a job which is
    run again writes over what the run before it left.
    """
    return Content(
        kind="raw_doc",
        type="youtube",
        name=name,
        description=description,
        url=url,
        mime_type=VTT,
        size_bytes=0,
        sha256="",
        status="pending",
        file_key=f"{folder}/contents/{uuid7()}/transcript.vtt",
    )


async def start_youtube(session: AsyncSession, broker: Broker, content: Content) -> Job:
    """Enqueues captions, or else audio and speech recognition, of a video. Raises JobAlreadyRunning."""
    return await _start(session, broker, YOUTUBE, content)


async def ensure_youtube(session: AsyncSession, broker: Broker, content: Content, video: str) -> Job:
    """The job of a content's video: the one that runs or has brought the text, else a new one.

    `video` is the id that the caller means. Raises ContentNotAVideo, UnknownContent.
    """
    row = await session.get(Content, content.id, populate_existing=True, with_for_update=True)
    if row is None:
        raise UnknownContent()
    if row.type != "youtube" or row.url is None or video_id(row.url) != video:
        raise ContentNotAVideo(content_id=row.id)
    job = None if row.job_id is None else await session.get(Job, row.job_id)
    if job is not None and (job.state in LIVE or row.status == "ready"):
        return job
    return await start_youtube(session, broker, row)


async def start_transcription(session: AsyncSession, broker: Broker, content: Content) -> Job:
    """Enqueues the speech recognition of an uploaded recording. Raises JobAlreadyRunning."""
    return await _start(session, broker, TRANSCRIPTION, content)


async def _start(session: AsyncSession, broker: Broker, kind: JobKind, content: Content) -> Job:
    project = await session.get_one(Project, content.project_id)
    job = await queue.enqueue(
        session,
        broker,
        kind,
        user_id=project.user_id,
        project_id=project.id,
        params={"content_id": content.id},
        exclusive_key=f"transcribe:{content.id}",
    )
    content.job_id = job.id
    content.status = "pending"
    content.error_code = content.error_message = content.error_context = None
    await session.flush()
    return job


async def _transcription_ended(session: AsyncSession, job: Job) -> None:
    await ending.note_end(session, job, TranscriptionCancelled)


TRANSCRIPTION = kinds.register(JobKind("transcribe_audio", "default", max_attempts=4, ending=_transcription_ended))
YOUTUBE = kinds.register(JobKind("transcribe_youtube_video", "default", max_attempts=4, ending=_transcription_ended))
