"""The end of a job that was to give one content its text."""

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.contents.models import Content
from backend.jobs.models import Job
from backend.jobs.states import JobState
from backend.kit.errors import DomainError
from backend.projects import service as projects


async def note_end(session: AsyncSession, job: Job, cancelled: type[DomainError]) -> None:
    """A content that has no text says why. The project's stage does not suffer: its other documents are there."""
    assert job.project_id is not None
    if job.state != JobState.SUCCESS:
        code, sentence, context = job.error_code, job.error_message, job.error_context
        if job.state == JobState.CANCELLED:
            code, sentence, context = cancelled.code, cancelled.template, {}
        await session.execute(
            update(Content)
            .where(Content.id == int(job.params["content_id"]), Content.status.in_(["pending", "processing"]))
            .values(status="error", error_code=code, error_message=sentence, error_context=context)
        )
    await projects.settle_stage(session, job.project_id)
