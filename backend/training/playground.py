"""The answer of a local model when no process serves any: a job of a gpu worker loads base and adapter for it alone."""

import asyncio
import time
from collections.abc import AsyncGenerator
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
from backend.kit.db import Database
from backend.projects.models import Project
from backend.training import local
from backend.training.errors import AnswerFailed, NoAnswerInTime, PromptRefused
from backend.training.fine_tunings import LOCAL
from backend.training.local import Bench
from backend.training.models import FineTuning
from backend.training.questions import Ending, Part, Piece, Question

ASKING = kinds.register(JobKind("playground", "gpu", max_attempts=2))
_CHECK_SECONDS = 0.25


async def answer(
    db: Database, broker: Broker, events: EventLog, run: FineTuning, question: Question, *, seconds: float
) -> AsyncGenerator[Part, None]:
    """The whole answer in one piece, the likeliest one whatever the temperature.

    Raises JobAlreadyRunning (a project asks one question at a time), NoAnswerInTime, PromptRefused, AnswerFailed.
    """
    async with db.transaction() as session:
        job = await enqueue(session, broker, run, question)
    text = await wait_for_answer(db, events, job.public_id, seconds=seconds)
    yield Piece(text)
    yield Ending(finish_reason="stop")


async def enqueue(session: AsyncSession, broker: Broker, fine_tuning: FineTuning, question: Question) -> Job:
    """Puts a question to a local model into the gpu queue; a project asks one at a time. Raises JobAlreadyRunning."""
    assert fine_tuning.provider == LOCAL, "a provider's model is asked there"
    project = await session.get_one(Project, fine_tuning.project_id)
    command = question.as_command()
    return await queue.enqueue(
        session,
        broker,
        ASKING,
        user_id=project.user_id,
        project_id=project.id,
        params={
            "fine_tuning_id": fine_tuning.id,
            "messages": command["messages"],
            "max_new_tokens": command["max_tokens"],
        },
        exclusive_key=f"playground:{project.id}",
    )


async def wait_for_answer(db: Database, events: EventLog, job_id: UUID, *, seconds: float) -> str:
    """The answer of a question's job. One that takes longer is cancelled.

    Raises NoAnswerInTime, PromptRefused, AnswerFailed.
    """
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
    if job.error_code == PromptRefused.code:
        raise PromptRefused(job.error_message)
    if job.state != JobState.SUCCESS or job.result is None:
        raise AnswerFailed(reason=job.error_message or "it was cancelled.", error_code=job.error_code)
    return str(job.result["response"])


async def run_question(run: JobRun, bench: Bench) -> dict[str, Any]:
    """The job: base and adapter are loaded, the question is answered, and all is given back."""
    rows = await local.answer(run, bench, [run.params["messages"]], ["tuned"], int(run.params["max_new_tokens"]))
    return {"response": rows[0]["tuned"]}
