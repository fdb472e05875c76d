"""The event stream of one job, as routes of both faces answer with it."""

from typing import Annotated, Any

from fastapi import Header
from fastapi.responses import StreamingResponse

from backend.api import sse
from backend.api.services import Services
from backend.jobs import service
from backend.jobs.models import Job
from backend.jobs.states import ENDED

LastEventId = Annotated[str | None, Header(alias="Last-Event-ID")]
SSE_DOCS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Server-sent events"},
    204: {"description": "The job has ended, and Last-Event-ID is its last event: do not come back"},
}


def event_stream(services: Services, job: Job, last_event_id: str | None) -> StreamingResponse:
    """The job's events from `last_event_id` on. The request's own transaction is over when this streams."""
    job_id = job.id

    async def end_of() -> tuple[str, dict[str, object]] | None:
        async with services.db.transaction() as session:
            current = await session.get(Job, job_id)
        if current is None:
            return "error", {"status": "failed", "error": "The job was deleted.", "error_code": "JOB_NOT_FOUND"}
        return service.end_event(current) if current.state in ENDED else None

    return sse.EventStream(
        services.events,
        services.hub,
        job.public_id,
        after=sse.resume_point(last_event_id),
        ended=job.state in ENDED,
        end_of=end_of,
    )
