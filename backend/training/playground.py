"""Questions to a finished fine-tuning: a provider's model is asked there, a local one by a job of a gpu worker."""

import asyncio
import time
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs import kinds, queue
from backend.jobs import service as jobs
from backend.jobs.errors import JobAlreadyEnded
from backend.jobs.events import EventLog
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.running import JobRun
from backend.jobs.states import ENDED, JobState
from backend.kit.broker import Broker
from backend.kit.config import Settings
from backend.kit.crypto import Sealer
from backend.kit.db import Database
from backend.projects.models import Project
from backend.providers.llm.base import ChatMessage
from backend.training.errors import AnswerFailed, FineTuningNotFinished, NoAnswerInTime
from backend.training.fine_tunings import LOCAL
from backend.training.local import Bench, answer
from backend.training.models import FineTuning
from backend.training.remote import provider_of
from backend.training.statuses import Status

ASKING = kinds.register(JobKind("playground", "gpu", max_attempts=2))
_CHECK_SECONDS = 0.25


def require_finished(fine_tuning: FineTuning) -> None:
    """Raises FineTuningNotFinished."""
    if fine_tuning.status != Status.COMPLETED:
        raise FineTuningNotFinished(state=fine_tuning.status)


async def ask_provider(
    db: Database,
    settings: Settings,
    sealer: Sealer,
    fine_tuning: FineTuning,
    messages: list[ChatMessage],
    *,
    max_tokens: int,
    temperature: float,
) -> str:
    """A provider's model, asked there with its owner's key. Raises ProviderKeyGone, TuningErrors, NoAnswerInTime."""
    model = fine_tuning.provider_state.get("result_model")
    if not model:
        raise FineTuningNotFinished(state=fine_tuning.status)
    try:
        async with (
            asyncio.timeout(settings.playground_timeout_seconds),
            provider_of(db, settings, sealer, fine_tuning) as provider,
        ):
            return await provider.answer(model, messages, max_tokens=max_tokens, temperature=temperature)
    except TimeoutError as error:
        raise NoAnswerInTime(seconds=settings.playground_timeout_seconds) from error


async def enqueue(
    session: AsyncSession, broker: Broker, fine_tuning: FineTuning, messages: list[ChatMessage], *, max_tokens: int
) -> Job:
    """Puts a question to a local model into the gpu queue; a project asks one at a time. Raises JobAlreadyRunning."""
    assert fine_tuning.provider == LOCAL, "a provider's model is asked there"
    project = await session.get_one(Project, fine_tuning.project_id)
    return await queue.enqueue(
        session,
        broker,
        ASKING,
        user_id=project.user_id,
        project_id=project.id,
        params={
            "fine_tuning_id": fine_tuning.id,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_new_tokens": max_tokens,
        },
        exclusive_key=f"playground:{project.id}",
    )


async def wait_for_answer(db: Database, events: EventLog, job_id: UUID, *, seconds: float) -> str:
    """The answer of a question's job. One that takes longer is cancelled. Raises NoAnswerInTime, AnswerFailed."""
    deadline = time.monotonic() + seconds
    while True:
        async with db.transaction() as session:
            job = await session.scalar(select(Job).where(Job.public_id == job_id))
        if job is None:
            raise AnswerFailed(reason="the question was deleted.")
        if job.state in ENDED:
            break
        if time.monotonic() >= deadline:
            try:
                async with db.transaction() as session:
                    await jobs.cancel(session, events, job)
            except JobAlreadyEnded:
                continue
            raise NoAnswerInTime(seconds=seconds)
        await asyncio.sleep(_CHECK_SECONDS)
    if job.state != JobState.SUCCESS or job.result is None:
        raise AnswerFailed(reason=job.error_message or "it was cancelled.", error_code=job.error_code)
    return str(job.result["response"])


async def run_question(run: JobRun, bench: Bench) -> dict[str, Any]:
    """The job: base and adapter are loaded, the question is answered, and all is given back."""
    rows = await answer(run, bench, [run.params["messages"]], ["tuned"], int(run.params["max_new_tokens"]))
    return {"response": rows[0]["tuned"]}
