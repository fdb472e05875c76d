"""Jobs: list, read, cancel, and follow."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from backend.api.errors import error_responses
from backend.api.job_events import SSE_DOCS, LastEventId, event_stream
from backend.api.language import ReaderLanguage, told
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedJob, OwnedProject
from backend.jobs import queries, service, turns
from backend.jobs.models import Job
from backend.jobs.states import JobState
from backend.jobs.turns import Place
from backend.kit.language import Language

router = APIRouter(tags=["jobs"])


class JobOut(BaseModel):
    id: UUID
    type: str
    status: str
    progress_pct: int
    message: str
    result_summary: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error_message: str | None
    error_code: str | None
    attempts: int
    cancel_requested: bool
    # Of one that waits for a GPU, where one job is shown: 1 is next.
    queue_position: int | None = None
    starts_in_seconds: int | None = None


class JobListOut(BaseModel):
    jobs: list[JobOut]


class CancelledOut(BaseModel):
    """`status` answers the request; `job_status` is the job's own, `running` until its worker has stopped."""

    status: str
    job_status: str


@router.get("/projects/{project_id}/jobs", responses=error_responses(404))
async def list_jobs(
    project: OwnedProject,
    session: SessionDep,
    reader: ReaderLanguage,
    type: Annotated[str | None, Query(max_length=50)] = None,
    status: Annotated[JobState | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 200,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> JobListOut:
    """The newest first."""
    jobs = await queries.list_jobs(session, project.id, kind=type, state=status, limit=limit, offset=offset)
    return JobListOut(jobs=[job_out(job, reader) for job in jobs])


@router.get("/jobs/{job_id}", responses=error_responses(404))
async def get_job(job: OwnedJob, session: SessionDep, reader: ReaderLanguage) -> JobOut:
    return job_out(job, reader, await turns.place_of(session, job))


@router.post("/jobs/{job_id}/cancel", responses=error_responses(404, 409))
async def cancel_job(job: OwnedJob, session: SessionDep, services: ServicesDep) -> CancelledOut:
    asked = await service.cancel(session, services.events, job)
    return CancelledOut(status=JobState.CANCELLED, job_status=asked.state)


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse, responses={**SSE_DOCS, **error_responses(404)})
async def stream_events(job: OwnedJob, services: ServicesDep, last_event_id: LastEventId = None) -> StreamingResponse:
    return event_stream(services, job, last_event_id)


def job_out(job: Job, reader: Language, place: Place | None = None) -> JobOut:
    return JobOut(
        id=job.public_id,
        type=job.kind,
        status=job.state,
        progress_pct=round(job.progress_pct),
        message=service.message_of(job),
        result_summary=job.result,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        error_message=told(reader, job.error_code, job.error_message, job.error_context),
        error_code=job.error_code,
        attempts=job.attempts,
        cancel_requested=job.cancel_requested_at is not None,
        queue_position=place.position if place else None,
        starts_in_seconds=None if place is None or place.starts_in_seconds is None else round(place.starts_in_seconds),
    )
