"""What people do with contents: upload and delete them, and have them cut into chunks."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from backend.contents import extraction, fetching, names, queries, sniffing
from backend.contents.errors import (
    BadChunkSizes,
    DatasetHasNoRows,
    DocumentRejected,
    FileTooLarge,
    NoDocuments,
    NoFiles,
    ProjectFull,
    TypeOfOtherKind,
    UnknownContent,
    UnknownKind,
    UnknownPurpose,
    UnsupportedType,
)
from backend.contents.extraction import ExtractionError, ExtractionLimits
from backend.contents.media import TYPE_OF_MEDIA
from backend.contents.models import Content
from backend.contents.records.normalising import normalise
from backend.contents.transcription import service as transcription
from backend.contents.types import ACCEPTED, TYPE_OF_MIME
from backend.contents.web.guard import Guard
from backend.jobs import kinds, queue
from backend.jobs import service as jobs
from backend.jobs.errors import JobAlreadyEnded
from backend.jobs.events import EventLog
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import LIVE, JobState
from backend.kit.broker import Broker
from backend.kit.config import Settings
from backend.kit.db import after_commit
from backend.projects import service as projects
from backend.projects.models import Project
from backend.projects.stages import Stage
from backend.providers.youtube.addresses import video_id
from backend.storage import Storage, file_digest

# What a dataset_upload is for: rows to train on, or an evaluation set that the examples must stay clear of.
EXAMPLES, REFERENCE = "examples", "reference"
PURPOSES = (EXAMPLES, REFERENCE)
# Each parser may take half a gigabyte and a core: what comes faster waits its turn.
_parsers = asyncio.Semaphore(4)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one upload may be and what reading it may cost."""

    max_file_mb: int
    extraction: ExtractionLimits

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        return cls(
            max_file_mb=settings.upload_max_file_mb,
            extraction=ExtractionLimits(
                timeout_seconds=settings.extraction_timeout_seconds,
                memory_bytes=settings.extraction_memory_mb * 1024 * 1024,
            ),
        )


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file on disk, with the name that its sender gave it."""

    path: Path
    filename: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked file whose bytes, and text if it is a document, are in storage; no row names it yet."""

    content: Content
    keys: list[str]


async def prepare(
    storage: Storage,
    limits: Limits,
    *,
    folder: str,
    kind: str,
    files: Sequence[Incoming],
    purpose: str = EXAMPLES,
    with_media: bool = False,
) -> list[Prepared]:
    """Checks, reads and stores files; when one is refused, nothing of any is left behind.

    `purpose` counts for datasets. `with_media` takes audio and video among documents: they are stored, and pending
    until the job of `transcription.service` has brought them to text. Opens no transaction: reading may take a minute.
    Raises UnknownKind, UnknownPurpose, NoFiles, UnsupportedType, FileTooLarge, DocumentRejected, DatasetHasNoRows.
    """
    if kind not in ACCEPTED:
        raise UnknownKind(accepted=" or ".join(ACCEPTED))
    if purpose not in PURPOSES:
        raise UnknownPurpose(accepted=" or ".join(PURPOSES))
    if not files:
        raise NoFiles()
    accepted = ACCEPTED[kind] | frozenset(TYPE_OF_MEDIA if with_media else ())
    prepared: list[Prepared] = []
    try:
        for file in files:
            # One by one: a comprehension would forget what was stored before a failure.
            prepared.append(await _prepare_one(storage, limits, folder, kind, purpose, file, accepted))  # noqa: PERF401
    except BaseException:
        await _discard(storage, prepared)
        raise
    return prepared


@asynccontextmanager
async def kept_or_deleted(storage: Storage, prepared: list[Prepared]) -> AsyncIterator[None]:
    """Deletes the stored bytes again when the block that gives them rows fails."""
    try:
        yield
    except BaseException:
        await _discard(storage, prepared)
        raise


async def add(
    session: AsyncSession, project: Project, prepared: list[Prepared], *, max_project_mb: int
) -> list[Content]:
    """Gives prepared files their rows. Raises ProjectFull when the project's total would be too large."""
    # The row lock makes two uploads take turns, so that both cannot fit into the same free space.
    await session.execute(select(Project.id).where(Project.id == project.id).with_for_update(key_share=True))
    total = await queries.stored_bytes(session, project.id) + sum(item.content.size_bytes for item in prepared)
    if total > max_project_mb * 1024 * 1024:
        raise ProjectFull(limit_mb=max_project_mb)
    contents = [item.content for item in prepared]
    for content in contents:
        content.project_id = project.id
    session.add_all(contents)
    await session.flush()
    if project.stage == Stage.DRAFT:
        await projects.settle_stage(session, project.id)
    return contents


async def add_link(
    session: AsyncSession,
    broker: Broker,
    project: Project,
    *,
    type: str,
    url: str,
    name: str,
    description: str | None = None,
    guard: Guard,
) -> Content:
    """Adds a page or video (`type` youtube) that a job will bring to text.

    Raises UrlInvalid and UrlNotAllowed for a page, VideoUrlInvalid and VideoIsPlaylist for a video.
    """
    is_video = type == "youtube"
    if is_video:
        video_id(url)
    else:
        guard.check(url)
    make = transcription.new_video if is_video else fetching.new_website
    content = make(projects.folder_of(project), url=url, name=name, description=description)
    content.project_id = project.id
    session.add(content)
    await session.flush()
    if is_video:
        await transcription.start_youtube(session, broker, content)
    else:
        await fetching.start_fetching(session, broker, project, content)
    return content


async def change(session: AsyncSession, content: Content, changes: dict[str, Any]) -> Content:
    """Sets name and description. Raises UnknownContent when it was deleted meanwhile."""
    if await session.get(Content, content.id, populate_existing=True, with_for_update=True) is None:
        raise UnknownContent()
    for field, value in changes.items():
        setattr(content, field, value)
    await session.flush()
    await session.refresh(content)
    return content


async def delete(session: AsyncSession, storage: Storage, events: EventLog, content: Content) -> None:
    """Deletes a file with its chunks. Examples made from them stay: they are the user's by now.

    Examples that were imported from it are withdrawn first, by `datasets.importing`.
    """
    await _stop_work(session, events, content)
    keys = [key for key in (content.file_key, content.text_key) if key is not None]
    project_id = content.project_id
    await session.delete(content)
    await session.flush()
    await projects.settle_stage(session, project_id)

    async def delete_blobs() -> None:
        await storage.delete(keys)

    after_commit(session, delete_blobs)


async def _stop_work(session: AsyncSession, events: EventLog, content: Content) -> None:
    """Cancels the job that fetches or transcribes a content, if it still does."""
    job = None if content.job_id is None else await session.get(Job, content.job_id)
    if job is not None and job.state in LIVE:
        with suppress(JobAlreadyEnded):
            await jobs.cancel(session, events, job)


async def start_chunking(
    session: AsyncSession, broker: Broker, project: Project, *, chunk_size_tokens: int, chunk_overlap_tokens: int
) -> Job:
    """Enqueues the chunking of all documents. Raises NoDocuments, BadChunkSizes, JobAlreadyRunning."""
    if chunk_overlap_tokens >= chunk_size_tokens:
        raise BadChunkSizes(overlap=chunk_overlap_tokens, size=chunk_size_tokens)
    if not await queries.list_contents(session, project.id, kind="raw_doc"):
        raise NoDocuments(project_id=str(project.public_id))
    job = await queue.enqueue(
        session,
        broker,
        CHUNKING,
        user_id=project.user_id,
        project_id=project.id,
        params={"chunk_size_tokens": chunk_size_tokens, "chunk_overlap_tokens": chunk_overlap_tokens},
        exclusive_key=f"data:{project.id}",
    )
    await projects.move_to(session, project.id, Stage.CHUNKING)
    return job


async def _prepare_one(
    storage: Storage, limits: Limits, folder: str, kind: str, purpose: str, file: Incoming, accepted: frozenset[str]
) -> Prepared:
    filename = names.safe_filename(file.filename)
    if file.size_bytes > limits.max_file_mb * 1024 * 1024:
        raise FileTooLarge(limit_mb=limits.max_file_mb, filename=filename)
    mime_type = await asyncio.to_thread(sniffing.sniff, file.path, filename)
    if file.size_bytes == 0:
        raise DocumentRejected("EMPTY_DOCUMENT", f"{filename} is empty. Upload a file with content.", filename=filename)
    if mime_type not in accepted:
        for other, types in ACCEPTED.items():
            if mime_type in types:
                raise TypeOfOtherKind(filename=filename, mime_type=mime_type, accepted=sorted(accepted), kind=other)
        raise UnsupportedType(filename=filename, mime_type=mime_type, accepted=sorted(accepted))
    prefix = f"{folder}/contents/{uuid7()}"
    content = Content(
        kind=kind,
        type=TYPE_OF_MEDIA.get(mime_type) or TYPE_OF_MIME[mime_type],
        name=filename,
        mime_type=mime_type,
        size_bytes=file.size_bytes,
        sha256=await asyncio.to_thread(file_digest, file.path),
        status="pending" if mime_type in TYPE_OF_MEDIA else "ready",
        purpose=purpose if kind == "dataset_upload" else EXAMPLES,
        file_key=f"{prefix}/{filename}",
    )
    keys = [content.file_key]
    try:
        await _store(storage, limits, file, content, keys, prefix)
    except BaseException:
        await storage.delete(keys)
        raise
    return Prepared(content, keys)


async def _store(
    storage: Storage, limits: Limits, file: Incoming, content: Content, keys: list[str], prefix: str
) -> None:
    """Stores the bytes, with the text of a document or the rows of a dataset beside them.

    `keys` gets a name before anything is stored under it.
    """
    if content.mime_type in TYPE_OF_MEDIA:
        await storage.put_file(content.file_key, file.path)
        return
    is_document = content.kind == "raw_doc"
    read_path = file.path.with_name(f"{file.path.name}.{'text' if is_document else 'rows'}.jsonl")
    try:
        async with _parsers:
            if is_document:
                await _read_document(file, content, read_path, limits)
            else:
                await _read_rows(file, content, read_path, limits)
    except ExtractionError as error:
        raise DocumentRejected(error.code, f"{content.name}: {error}", filename=content.name) from error
    # No safe file name begins with a dash: it cannot be that of the file itself.
    content.text_key = f"{prefix}/-{'text' if is_document else 'rows'}.jsonl"
    keys.append(content.text_key)
    await storage.put_file(content.text_key, read_path)
    await storage.put_file(content.file_key, file.path)


async def _read_document(file: Incoming, content: Content, destination: Path, limits: Limits) -> None:
    document = await extraction.extract_to_file(file.path, content.mime_type, destination, limits.extraction)
    content.page_count, content.character_count = document.pages, document.character_count
    content.language = await extraction.find_language(destination)


async def _read_rows(file: Incoming, content: Content, destination: Path, limits: Limits) -> None:
    report = await normalise(file.path, content.mime_type, destination, limits.extraction)
    if not report["valid"]:
        raise DatasetHasNoRows(filename=content.name, report=report)
    content.import_report = report


async def _discard(storage: Storage, prepared: list[Prepared]) -> None:
    await storage.delete([key for item in prepared for key in item.keys])


async def _chunking_ended(session: AsyncSession, job: Job) -> None:
    assert job.project_id is not None
    await projects.settle_stage(session, job.project_id, failed=job.state == JobState.FAILED)


CHUNKING = kinds.register(JobKind("chunk_generate", "default", ending=_chunking_ended))
