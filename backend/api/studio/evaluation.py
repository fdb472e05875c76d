"""What a run's evaluation proved: figures, report, and a judge for the answers."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import Response

from backend.api.auth import ClaimsDep, authenticate
from backend.api.errors import error_responses
from backend.api.evaluations import EvaluationOut, evaluation_out
from backend.api.idempotency import IdempotentRoute
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.api.studio.deps import OwnedProject
from backend.api.studio.schemas import EnqueuedOut, enqueued
from backend.projects import queries as project_queries
from backend.training import evaluation, queries, service
from backend.training.report import render_report

router = APIRouter(prefix="/projects/{project_id}/train", tags=["training"], route_class=IdempotentRoute)

_MARKDOWN: dict[int | str, dict[str, Any]] = {200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}}


@router.get("/evaluation", responses=error_responses(404))
async def get_evaluation(project_id: UUID, claims: ClaimsDep, services: ServicesDep) -> EvaluationOut:
    """Of the latest run: base against tuned on the held-out examples, with every question's answers."""
    # A short transaction of its own: none is open while the storage is asked.
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        project = await project_queries.get_project(session, owner, project_id)
        run, _ = await service.latest_run(session, project)
        artifact = await evaluation.find_answers(session, run)
    return evaluation_out(run, await evaluation.read_answers(services.storage, artifact))


@router.get("/report", response_class=Response, responses={**_MARKDOWN, **error_responses(404)})
async def get_report(project: OwnedProject, session: SessionDep) -> Response:
    """The report of the latest run, as the export holds it."""
    run, _ = await service.latest_run(session, project)
    text = render_report(project, run, await queries.version_of(session, run))
    return Response(text, media_type="text/markdown; charset=utf-8")


@router.post("/evaluation/judge", status_code=202, responses=error_responses(400, 404, 409))
async def judge_answers(project: OwnedProject, session: SessionDep, services: ServicesDep) -> EnqueuedOut:
    """LLM_JUDGE_MODEL compares the answers of both models, each pair in both orders; the evaluation shows who won."""
    job = await service.start_judging(session, services.broker, services.settings, project)
    return enqueued(job, "Judging job enqueued")
