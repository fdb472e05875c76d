"""Wire shapes that several studio routes share."""

from uuid import UUID

from pydantic import BaseModel

from backend.jobs.models import Job


class EnqueuedOut(BaseModel):
    """A job that was put in its queue."""

    job_id: UUID
    status: str
    message: str


def enqueued(job: Job, message: str) -> EnqueuedOut:
    return EnqueuedOut(job_id=job.public_id, status=job.state, message=message)
