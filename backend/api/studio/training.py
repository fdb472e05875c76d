"""Training: start, status, live logs, cancel, and the comparison of base and tuned."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from backend.api.errors import error_responses
from backend.api.idempotency import IdempotentRoute
from backend.api.job_events import SSE_DOCS, LastEventId, event_stream
from backend.api.language import ReaderLanguage, told
from backend.api.loss_curves import LossCurveOut, PointOut
from backend.api.run_memory import MemoryOut, OutlookOut, memory_out, outlook_out
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedProject
from backend.api.studio.schemas import EnqueuedOut, enqueued
from backend.jobs import service as jobs
from backend.jobs.states import JobState
from backend.training import loss_curve, queries, service
from backend.training.fine_tunings import LOCAL
from backend.training.sizing import Method

router = APIRouter(prefix="/projects/{project_id}/train", tags=["training"], route_class=IdempotentRoute)

Question = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]


class TrainIn(BaseModel):
    method: Method = "qlora"
    # Checked by the service, whose sentence names the accepted ones.
    hyperparams: dict[str, Any] = Field(default_factory=dict)


class TrainOut(BaseModel):
    job_id: UUID
    run_id: UUID
    status: str
    message: str
    # What should be known of the examples, and of how the run is cut to fit in memory.
    warnings: list[str]


class MetricsOut(BaseModel):
    """The last step's figures, null until there are some, and beside them whatever else the run measured."""

    model_config = ConfigDict(extra="allow")

    step: int | None = None
    total_steps: int | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None


class TrainedOnOut(BaseModel):
    """The frozen version of the dataset that a run trains on."""

    id: UUID
    version: int
    sha256: str


class StatusOut(BaseModel):
    run_id: UUID
    job_id: UUID
    status: str
    method: str
    progress_pct: int
    message: str
    current_metrics: MetricsOut
    # None for a run of a time when datasets had no versions.
    dataset: TrainedOnOut | None
    # None for a run at a provider.
    memory: MemoryOut | None
    started_at: datetime | None
    finished_at: datetime | None
    elapsed_seconds: int
    error_message: str | None


class CancelledOut(BaseModel):
    status: str
    message: str
    job_status: str


class CompareIn(BaseModel):
    questions: list[Question] = Field(min_length=1, max_length=50)
    max_new_tokens: int = Field(default=128, ge=1, le=2048)


@router.post("/start", status_code=202, responses=error_responses(400, 403, 404, 409))
async def start_training(
    project: OwnedProject, session: SessionDep, services: ServicesDep, body: TrainIn | None = None
) -> TrainOut:
    wanted = body or TrainIn()
    fine_tuning, job, warnings = await service.start(
        session, services.broker, services.library, project, method=wanted.method, given=wanted.hyperparams
    )
    return TrainOut(
        job_id=job.public_id,
        run_id=fine_tuning.public_id,
        status=job.state,
        message="Training job enqueued on gpu_queue",
        warnings=warnings,
    )


@router.post("/forecast", responses=error_responses(400, 404))
async def forecast_training(
    project: OwnedProject, session: SessionDep, services: ServicesDep, body: TrainIn | None = None
) -> OutlookOut:
    """How much memory the run would take, and how it would be cut to fit; nothing is started."""
    wanted = body or TrainIn()
    outlook = await service.foresee(session, services.library, project, method=wanted.method, given=wanted.hyperparams)
    return outlook_out(outlook)


@router.get("/status", responses=error_responses(404))
async def get_training_status(project: OwnedProject, session: SessionDep, reader: ReaderLanguage) -> StatusOut:
    fine_tuning, job = await service.latest_run(session, project)
    hosted = fine_tuning.provider != LOCAL
    # The job of a run at a provider only hands it over; what is shown is the run's own.
    failed = fine_tuning if hosted else job
    started = fine_tuning.started_at if hosted else job.started_at
    finished = fine_tuning.completed_at if hosted else job.finished_at
    ended = finished or datetime.now(UTC)
    hidden = ("history", "samples", "versions", "evaluation")
    trained_on = await queries.version_of(session, fine_tuning)
    return StatusOut(
        run_id=fine_tuning.public_id,
        job_id=job.public_id,
        status=service.job_state(fine_tuning, job),
        method=fine_tuning.method,
        progress_pct=round(fine_tuning.progress if hosted else job.progress_pct),
        message=jobs.message_of(job),
        current_metrics=MetricsOut(**{key: item for key, item in fine_tuning.metrics.items() if key not in hidden}),
        dataset=TrainedOnOut.model_validate(trained_on.as_dict()) if trained_on else None,
        memory=memory_out(fine_tuning.memory),
        started_at=started,
        finished_at=finished,
        elapsed_seconds=round((ended - started).total_seconds()) if started else 0,
        error_message=told(reader, failed.error_code, failed.error_message, failed.error_context),
    )


@router.get("/logs/stream", response_class=StreamingResponse, responses={**SSE_DOCS, **error_responses(404)})
async def stream_training_logs(
    project: OwnedProject, session: SessionDep, services: ServicesDep, last_event_id: LastEventId = None
) -> StreamingResponse:
    _, job = await service.latest_run(session, project)
    return event_stream(services, job, last_event_id)


@router.get("/history", responses=error_responses(404))
async def get_training_history(project: OwnedProject, session: SessionDep, services: ServicesDep) -> LossCurveOut:
    """The latest run's losses, each step once, also of a run that was taken up by another worker."""
    fine_tuning, _ = await service.latest_run(session, project)
    points = await loss_curve.read(session, services.events, fine_tuning)
    return LossCurveOut(points=[PointOut(**point) for point in points])


@router.post("/cancel", responses=error_responses(404, 409))
async def cancel_training(project: OwnedProject, session: SessionDep, services: ServicesDep) -> CancelledOut:
    fine_tuning, job = await service.cancel(session, services.events, project)
    state = service.job_state(fine_tuning, job)
    return CancelledOut(status=JobState.CANCELLED, message="Training job cancelled", job_status=state)


@router.post("/compare", status_code=202, responses=error_responses(400, 404))
async def compare_models(
    body: CompareIn, project: OwnedProject, session: SessionDep, services: ServicesDep
) -> EnqueuedOut:
    """Asks the base and the tuned model the same questions; the job's `result_summary.answers` holds both."""
    job = await service.start_comparison(
        session, services.broker, project, questions=body.questions, max_new_tokens=body.max_new_tokens
    )
    return enqueued(job, "Comparison job enqueued on gpu_queue")
