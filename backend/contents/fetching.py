"""The job that fetches a web page and keeps its text, so that it is cut into chunks like any document."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from backend.contents import ending, queries
from backend.contents.errors import ProjectFull
from backend.contents.extraction import ExtractionLimits
from backend.contents.models import Content
from backend.contents.web.errors import FetchCancelled
from backend.contents.web.fetch import Fetcher
from backend.contents.web.readable import ACCEPTED_TYPES, HTML, PageText, read_page
from backend.contents.web.robots import Robots
from backend.jobs import kinds, queue
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.running import JobRun
from backend.kit.broker import Broker
from backend.projects.models import Project
from backend.storage import Storage, file_digest

_robots = Robots()


@dataclass(frozen=True, slots=True)
class Fetching:
    """What the job needs: how it fetches, what reading may cost, and how much a project may hold."""

    fetcher: Fetcher
    limits: ExtractionLimits
    max_project_mb: int


def new_website(folder: str, *, url: str, name: str, description: str | None) -> Content:
    """The row of a page that is still to be fetched. It owns its storage keys from the start, so that a job which is
    run again writes over what the run before it left.
    """
    prefix = f"{folder}/contents/{uuid7()}"
    return Content(
        kind="raw_doc",
        type="website",
        name=name,
        description=description,
        url=url,
        mime_type=HTML,
        size_bytes=0,
        sha256="",
        status="pending",
        file_key=f"{prefix}/page",
    )


async def start_fetching(session: AsyncSession, broker: Broker, project: Project, content: Content) -> Job:
    """Enqueues the fetch of one page, beside whatever else runs in the project."""
    job = await queue.enqueue(
        session,
        broker,
        FETCHING,
        user_id=project.user_id,
        project_id=project.id,
        params={"content_id": content.id},
        exclusive_key=f"fetch:{content.id}",
    )
    content.job_id = job.id
    await session.flush()
    return job


async def fetch(run: JobRun, storage: Storage, needs: Fetching) -> dict[str, Any]:
    """Fetches, reads and stores the page of one content; running it again leaves one set of files.

    Raises the errors of `contents.web.errors`, DocumentRejected and ProjectFull.
    """
    content = await _begin(run)
    if content is None or content.url is None:
        return {"deleted": True}
    with TemporaryDirectory(prefix="finetuneflow-page-") as folder:
        page, text = Path(folder) / "page", Path(folder) / "text.jsonl"
        await run.progress(5, f"Fetching {httpx.URL(content.url).host}", force=True)
        permit = partial(_robots.permit, needs.fetcher)
        resource = await needs.fetcher.fetch(content.url, page, accepted=ACCEPTED_TYPES, permit=permit)
        await run.progress(50, "Reading the page", force=True)
        found = await read_page(page, resource, text, needs.limits)
        text_key = f"{content.file_key.rpartition('/')[0]}/-text.jsonl"
        await storage.put_file(content.file_key, page)
        await storage.put_file(text_key, text)
        try:
            kept = await _keep(run, content, found, text_key, page, max_project_mb=needs.max_project_mb)
        except ProjectFull:
            await storage.delete([content.file_key, text_key])
            raise
    if not kept:
        await storage.delete([content.file_key, text_key])
        return {"deleted": True}
    return {"content_id": content.id, "character_count": found.character_count, "url": resource.url}


async def _begin(run: JobRun) -> Content | None:
    """The content, which is being processed from now on; None when it was deleted meanwhile."""
    async with run.writing() as session:
        content = await _locked(session, int(run.params["content_id"]))
        if content is not None:
            content.status = "processing"
            content.error_code = content.error_message = None
        return content


async def _keep(
    run: JobRun, content: Content, found: PageText, text_key: str, page: Path, *, max_project_mb: int
) -> bool:
    """Writes what was found; False when the content was deleted meanwhile. Raises ProjectFull."""
    size = page.stat().st_size
    async with run.writing() as session:
        row = await _locked(session, content.id)
        if row is None:
            return False
        # Contents before projects, as in a deletion. Two that fill the project take turns.
        await session.execute(select(Project.id).where(Project.id == row.project_id).with_for_update(key_share=True))
        others = await queries.stored_bytes(session, row.project_id) - row.size_bytes
        if others + size > max_project_mb * 1024 * 1024:
            raise ProjectFull(limit_mb=max_project_mb)
        row.status = "ready"
        row.mime_type = found.mime_type
        row.size_bytes = size
        row.sha256 = file_digest(page)
        row.page_count = found.pages
        row.character_count = found.character_count
        row.language = found.language
        row.meta = found.meta
        row.text_key = text_key
    return True


async def _locked(session: AsyncSession, content_id: int) -> Content | None:
    return await session.get(Content, content_id, populate_existing=True, with_for_update=True)


async def _fetching_ended(session: AsyncSession, job: Job) -> None:
    await ending.note_end(session, job, FetchCancelled)


FETCHING = kinds.register(JobKind("website_fetch", "default", max_attempts=4, ending=_fetching_ended))
