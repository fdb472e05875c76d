"""Fine-tunings as the dashboard sees them, on this machine's workers and at every provider."""

import asyncio
import time
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, StringConstraints, field_validator

from backend.api import answering, sse
from backend.api.answering import Clock
from backend.api.auth import ClaimsDep, OwnerDep, authenticate
from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.job_events import SSE_DOCS, LastEventId, event_stream
from backend.api.language import ReaderLanguage, told
from backend.api.platform.answer_stream import ANSWER_HEADERS, AnswerOut, PromptIn, answer_stream, timing_headers
from backend.api.platform.deps import LARGEST_ID, OwnedFineTuning, RowId, RowIdQuery, WindowDep, count_all
from backend.api.run_memory import MemoryOut, OutlookOut, memory_out, outlook_out
from backend.api.services import Services, ServicesDep
from backend.api.session import SessionDep
from backend.jobs.models import Job
from backend.kit.language import Language
from backend.training import answers, fine_tunings, playground, queries, statuses
from backend.training.errors import FineTuningEnded, FineTuningNotFound, FineTuningStillEnding, NoServingHost
from backend.training.fine_tunings import LOCAL, Wanted
from backend.training.models import FineTuning
from backend.training.sizing import Method
from backend.training.statuses import Status

router = APIRouter(prefix="/fine-tunings", tags=["fine-tunings"], route_class=IdempotentRoute)
# Not idempotent: a question changes nothing, and a deletion waits between two transactions.
waiting = APIRouter(prefix="/fine-tunings", tags=["fine-tunings"])

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Description = Annotated[str, StringConstraints(max_length=10_000)]
ProviderName = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1, max_length=30)]
ModelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
# How long a deletion waits for a run that it cancelled.
_ENDING_SECONDS = 5.0
_CHECK_SECONDS = 0.25
_METRICS = {"training_loss": "train_loss", "validation_loss": "eval_loss", "step": "step", "total_steps": "total_steps"}


class FineTuningIn(BaseModel):
    """`method` matters for provider `local` only."""

    dataset_id: Annotated[int, Field(ge=1, le=LARGEST_ID)]
    name: Name
    description: Description | None = None
    model: ModelName
    provider: ProviderName
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    method: Method = "qlora"


class ForecastIn(BaseModel):
    dataset_id: Annotated[int, Field(ge=1, le=LARGEST_ID)]
    model: ModelName
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    method: Method = "qlora"


class FineTuningChange(BaseModel):
    """What is left out stays as it is."""

    name: Name | None = None
    description: Description | None = None

    @field_validator("name")
    @classmethod
    def _not_null(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("leave the field out to keep it; it cannot be null")
        return value


class RetrainIn(BaseModel):
    """What is left out is as it was; hyperparameters only where the provider stays the same."""

    provider: ProviderName | None = None
    model: ModelName | None = None
    hyperparameters: dict[str, Any] | None = None
    name: Name | None = None
    method: Method | None = None


class CancelIn(BaseModel):
    reason: Annotated[str, StringConstraints(strip_whitespace=True, max_length=1000)] | None = None


class MetricsOut(BaseModel):
    """Null until there are some, and where the provider tells none."""

    training_loss: float | None
    validation_loss: float | None
    step: int | None
    total_steps: int | None


class FineTuningOut(BaseModel):
    """`status` is `cancelled` from the cancel on; `is_settled` is false until worker or provider has confirmed it."""

    id: int
    project_id: int
    dataset_id: int
    dataset_version: int | None
    name: str
    description: str | None
    model: str
    provider: str
    method: str
    status: Status
    is_settled: bool
    progress: float
    hyperparameters: dict[str, Any]
    external_id: str | None
    result_model: str | None
    trained_tokens: int | None
    metrics: MetricsOut
    memory: MemoryOut | None
    error_message: str | None
    error_code: str | None
    system_prompt: str | None
    retrained_from_id: int | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


class StartedOut(FineTuningOut):
    """`warnings`: what ends soon at the provider, and what should be known of the examples."""

    warnings: list[str]


@router.get("", responses=error_responses(401, 404))
async def list_fine_tunings(
    owner: OwnerDep,
    session: SessionDep,
    window: WindowDep,
    response: Response,
    reader: ReaderLanguage,
    dataset_id: RowIdQuery = None,
    project_id: RowIdQuery = None,
) -> list[FineTuningOut]:
    """The newest first."""
    page = await queries.page_by_number(session, owner, window, dataset_id=dataset_id, project_id=project_id)
    count_all(response, page.total)
    return [fine_tuning_out(run, reader) for run in page.items]


@router.post("", status_code=201, responses=error_responses(400, 401, 403, 404, 409))
async def create_fine_tuning(
    body: FineTuningIn, owner: OwnerDep, session: SessionDep, services: ServicesDep, reader: ReaderLanguage
) -> StartedOut:
    """Freezes the dataset as it is now and starts the run: at the provider, or on this machine's workers (`local`)."""
    wanted = Wanted(**body.model_dump(exclude={"dataset_id"}))
    run, warnings = await fine_tunings.create(
        session, services.broker, services.library, owner, body.dataset_id, wanted
    )
    return StartedOut(**_fields(run, reader), warnings=warnings)


@waiting.post("/forecast", responses=error_responses(400, 401, 404))
async def forecast_fine_tuning(
    body: ForecastIn, owner: OwnerDep, session: SessionDep, services: ServicesDep
) -> OutlookOut:
    """How much memory a run of provider `local` would take, and how it would be cut to fit; nothing is started."""
    outlook = await fine_tunings.foresee(
        session, services.library, owner, body.dataset_id, body.model, body.method, body.hyperparameters
    )
    return outlook_out(outlook)


@router.get("/{fine_tuning_id}", responses=error_responses(401, 404))
async def get_fine_tuning(fine_tuning: OwnedFineTuning, reader: ReaderLanguage) -> FineTuningOut:
    return fine_tuning_out(fine_tuning, reader)


@router.put("/{fine_tuning_id}", responses=error_responses(401, 404))
async def change_fine_tuning(
    body: FineTuningChange, fine_tuning: OwnedFineTuning, session: SessionDep, reader: ReaderLanguage
) -> FineTuningOut:
    changed = await fine_tunings.change(session, fine_tuning, body.model_dump(exclude_unset=True))
    return fine_tuning_out(changed, reader)


@router.post("/{fine_tuning_id}/cancel", responses=error_responses(401, 404, 409))
async def cancel_fine_tuning(
    fine_tuning: OwnedFineTuning,
    session: SessionDep,
    services: ServicesDep,
    reader: ReaderLanguage,
    body: CancelIn | None = None,
) -> FineTuningOut:
    """`reason` becomes the error_message. A run that completes before the cancel arrives stays completed."""
    reason = body.reason if body is not None else None
    cancelled = await fine_tunings.cancel(session, services.events, fine_tuning, reason or None)
    return fine_tuning_out(cancelled, reader)


@router.post("/{fine_tuning_id}/retrain", status_code=201, responses=error_responses(400, 401, 403, 404, 409))
async def retrain_fine_tuning(
    fine_tuning: OwnedFineTuning,
    session: SessionDep,
    services: ServicesDep,
    reader: ReaderLanguage,
    body: RetrainIn | None = None,
) -> StartedOut:
    """Another run on the very same frozen examples, with another provider, base or hyperparameters."""
    changes = body.model_dump() if body is not None else {}
    run, warnings = await fine_tunings.retrain(session, services.broker, services.library, fine_tuning, **changes)
    return StartedOut(**_fields(run, reader), warnings=warnings)


@router.get(
    "/{fine_tuning_id}/events", response_class=StreamingResponse, responses={**SSE_DOCS, **error_responses(401, 404)}
)
async def stream_fine_tuning(
    fine_tuning: OwnedFineTuning, session: SessionDep, services: ServicesDep, last_event_id: LastEventId = None
) -> StreamingResponse:
    """Live: the trainer's events of a local run, and what a provider tells each time that it is asked."""
    if fine_tuning.provider == LOCAL and fine_tuning.job_id is not None:
        return event_stream(services, await session.get_one(Job, fine_tuning.job_id), last_event_id)
    return _hosted_stream(services, fine_tuning, last_event_id)


@waiting.delete("/{fine_tuning_id}", status_code=204, responses=error_responses(401, 404, 409))
async def delete_fine_tuning(fine_tuning_id: RowId, claims: ClaimsDep, services: ServicesDep) -> None:
    """Cancels it first, and waits some seconds for that. Its model at a provider stays there."""
    deadline = time.monotonic() + _ENDING_SECONDS
    asked = False
    while True:
        async with services.db.transaction() as session:
            owner = await authenticate(services, session, claims)
            try:
                run = await queries.get_by_number(session, owner, fine_tuning_id)
            except FineTuningNotFound:
                if asked:
                    return
                raise
            if run.status not in statuses.ENDED and not asked:
                with suppress(FineTuningEnded):
                    await fine_tunings.cancel(session, services.events, run)
                asked = True
            try:
                await fine_tunings.delete(session, services.storage, services.events, run)
            except FineTuningStillEnding:
                late = time.monotonic() >= deadline
            else:
                return
        # The cancel is committed, whatever the answer is.
        if late:
            raise FineTuningStillEnding()
        await asyncio.sleep(_CHECK_SECONDS)


@waiting.post(
    "/{fine_tuning_id}/test",
    response_model=AnswerOut,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "headers": ANSWER_HEADERS},
        **error_responses(400, 401, 404, 409, 502, 503),
    },
)
async def question_fine_tuning(
    fine_tuning_id: RowId,
    body: PromptIn,
    request: Request,
    response: Response,
    claims: ClaimsDep,
    services: ServicesDep,
) -> AnswerOut | StreamingResponse:
    """Asks the finished model, and answers piece by piece when `stream` is true or text/event-stream is accepted.

    No transaction is open while it thinks.
    """
    clock = Clock()
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        run = await queries.get_by_number(session, owner, fine_tuning_id)
        answers.require_finished(run)
    question = body.question(run.system_prompt)
    seconds = services.settings.playground_timeout_seconds
    streamed = body.stream or "text/event-stream" in request.headers.get("accept", "").lower()
    try:
        parts = await answering.opened(
            services, request, run, question, user_id=owner.id, seconds=seconds, piecewise=streamed
        )
    except NoServingHost:
        # A worker of the queue gpu can still load the model for this one question.
        job = playground.answer(services.db, services.broker, services.events, run, question, seconds=seconds)
        parts = await answering.begun(job)
    if streamed:
        return answer_stream(parts, clock)
    text, ending = await answering.collected(parts, clock)
    response.headers.update(timing_headers(clock, ending))
    return AnswerOut(response=text.strip())


def fine_tuning_out(run: FineTuning, reader: Language) -> FineTuningOut:
    return FineTuningOut(**_fields(run, reader))


def _fields(run: FineTuning, reader: Language) -> dict[str, Any]:
    """With what went wrong in the reader's language."""
    settled = run.status in statuses.ENDED or run.cancel_requested_at is None
    # The trainer of this machine and the providers have different words for the same.
    metrics = {name: run.metrics.get(name, run.metrics.get(other)) for name, other in _METRICS.items()}
    names = FineTuningOut.model_fields.keys() - {
        "error_message",
        "status",
        "is_settled",
        "metrics",
        "memory",
        "result_model",
        "trained_tokens",
    }
    return {
        **{name: getattr(run, name) for name in names},
        "error_message": told(reader, run.error_code, run.error_message, run.error_context),
        "status": run.status if settled else Status.CANCELLED,
        "is_settled": settled,
        "metrics": metrics,
        "memory": memory_out(run.memory),
        "result_model": run.provider_state.get("result_model"),
        "trained_tokens": run.provider_state.get("trained_tokens"),
    }


def _hosted_stream(services: Services, run: FineTuning, last_event_id: str | None) -> StreamingResponse:
    run_id = run.id

    async def end_of() -> tuple[str, dict[str, object]] | None:
        async with services.db.transaction() as session:
            current = await session.get(FineTuning, run_id)
        if current is None:
            return "error", {"status": "error", "error": "The fine-tuning was deleted."}
        if current.status not in statuses.ENDED:
            return None
        if current.status == Status.ERROR:
            return "error", {"status": current.status, "error": current.error_message}
        return "complete", {"status": current.status}

    return sse.EventStream(
        services.events,
        services.hub,
        run.public_id,
        after=sse.resume_point(last_event_id),
        ended=run.status in statuses.ENDED,
        end_of=end_of,
    )
