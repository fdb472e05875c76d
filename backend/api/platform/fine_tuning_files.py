"""A fine-tuning's proof and files: its evaluation, its report, its exports and their downloads."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from backend.api.auth import ClaimsDep, authenticate
from backend.api.downloads import DOWNLOAD_DOCS, IfRangeHeader, RangeHeader, download
from backend.api.errors import error_responses
from backend.api.evaluations import EvaluationOut, evaluation_out
from backend.api.idempotency import IdempotentRoute
from backend.api.loss_curves import LossCurveOut, PointOut
from backend.api.platform.deps import OwnedFineTuning, RowId, WindowDep, shown
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.projects.models import Project
from backend.training import evaluation, loss_curve, queries, service
from backend.training.export_formats import Format
from backend.training.report import render_report

router = APIRouter(prefix="/fine-tunings/{fine_tuning_id}", tags=["fine-tunings"], route_class=IdempotentRoute)

_MARKDOWN: dict[int | str, dict[str, Any]] = {200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}}


class ExportIn(BaseModel):
    """`formats`: the adapter is always among them; merged and GGUF models are computed on a gpu worker."""

    formats: list[Format] = Field(default=["adapter"], max_length=8)


class TaskOut(BaseModel):
    task_id: UUID
    status: str


class FileOut(BaseModel):
    filename: str
    size_bytes: int
    sha256: str
    download_url: str


@router.get("/evaluation", responses=error_responses(401, 404))
async def get_fine_tuning_evaluation(fine_tuning_id: RowId, claims: ClaimsDep, services: ServicesDep) -> EvaluationOut:
    """Base against tuned on the held-out examples, with every question's answers."""
    # A short transaction of its own: none is open while the storage is asked.
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        run = await queries.get_by_number(session, owner, fine_tuning_id)
        artifact = await evaluation.find_answers(session, run)
    return evaluation_out(run, await evaluation.read_answers(services.storage, artifact))


@router.get("/history", responses=error_responses(401, 404))
async def get_fine_tuning_history(
    fine_tuning: OwnedFineTuning, session: SessionDep, services: ServicesDep
) -> LossCurveOut:
    """Its losses, each step once, also of a run that was taken up by another worker; none of a hosted one."""
    points = await loss_curve.read(session, services.events, fine_tuning)
    return LossCurveOut(points=[PointOut(**point) for point in points])


@router.post("/evaluation/judge", status_code=202, responses=error_responses(400, 401, 404, 409))
async def judge_fine_tuning(fine_tuning: OwnedFineTuning, session: SessionDep, services: ServicesDep) -> TaskOut:
    """LLM_JUDGE_MODEL compares the answers of both models, each pair in both orders; the evaluation shows who won."""
    project = await session.get_one(Project, fine_tuning.project_id)
    job = await service.start_judging(session, services.broker, services.settings, project, fine_tuning)
    return TaskOut(task_id=job.public_id, status=job.state)


@router.get("/report", response_class=Response, responses={**_MARKDOWN, **error_responses(401, 404)})
async def get_fine_tuning_report(fine_tuning: OwnedFineTuning, session: SessionDep) -> Response:
    project = await session.get_one(Project, fine_tuning.project_id)
    text = render_report(project, fine_tuning, await queries.version_of(session, fine_tuning))
    return Response(text, media_type="text/markdown; charset=utf-8")


@router.post("/export", status_code=202, responses=error_responses(400, 401, 404, 409))
async def export_fine_tuning(
    fine_tuning: OwnedFineTuning, session: SessionDep, services: ServicesDep, body: ExportIn | None = None
) -> TaskOut:
    """Each model is compared with the trained one before it is handed out; one that drifts fails the task."""
    project = await session.get_one(Project, fine_tuning.project_id)
    formats = (body or ExportIn()).formats
    job = await service.start_export(session, services.broker, project, formats, fine_tuning)
    return TaskOut(task_id=job.public_id, status=job.state)


@router.get("/files", responses=error_responses(401, 404))
async def list_fine_tuning_files(
    fine_tuning: OwnedFineTuning, session: SessionDep, window: WindowDep, response: Response
) -> list[FileOut]:
    """The files of its latest export."""
    artifacts = await queries.list_artifacts(session, fine_tuning.id, queries.EXPORT)
    return [
        FileOut(
            filename=item.filename,
            size_bytes=item.size_bytes,
            sha256=item.sha256,
            download_url=f"/api/fine-tunings/{fine_tuning.id}/files/{item.filename}",
        )
        for item in shown(response, window, artifacts)
    ]


@router.get(
    "/files/{filename:path}",
    response_class=StreamingResponse,
    responses={**DOWNLOAD_DOCS, **error_responses(401, 404, 416)},
)
async def download_fine_tuning_file(
    fine_tuning_id: RowId,
    filename: str,
    claims: ClaimsDep,
    services: ServicesDep,
    range_header: RangeHeader = None,
    if_range: IfRangeHeader = None,
) -> StreamingResponse:
    """Only names that the list holds are served; a path is just an unknown name."""
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        run = await queries.get_by_number(session, owner, fine_tuning_id)
        artifact = await queries.get_export_of(session, run, filename)
    return await download(services.storage, artifact, range_header, if_range)
