"""The project's base model: found, counted and sized."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, StringConstraints

from backend.api.auth import ClaimsDep, authenticate
from backend.api.errors import error_responses
from backend.api.services import ServicesDep
from backend.projects import queries, service
from backend.training import model_info

router = APIRouter(prefix="/projects/{project_id}/model", tags=["model"])


class ModelIn(BaseModel):
    model_id: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]


class ModelOut(BaseModel):
    model_id: str
    model_type: str | None
    num_parameters: int | None
    estimated_vram_fp16_gb: float | None
    estimated_vram_4bit_gb: float | None
    architecture: str | None
    vocab_size: int | None
    max_position_embeddings: int | None
    license: str | None
    valid: bool
    warnings: list[str]
    num_parameters_exact: int | None
    weights_4bit_gb: float | None
    source: str
    revision: str | None
    vram_training: dict[str, Any] | None


@router.post("/resolve", responses=error_responses(400, 404, 503))
async def resolve_model(project_id: UUID, body: ModelIn, claims: ClaimsDep, services: ServicesDep) -> ModelOut:
    """Two short transactions: none is open while the Hub is asked."""
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        await queries.get_project(session, owner, project_id)
    facts = await services.library.resolve(body.model_id)
    info = model_info.describe(facts)
    async with services.db.transaction() as session:
        project = await queries.get_project(session, owner, project_id)
        await service.change(session, project, {"base_model_id": facts.model_id, "model_info": info})
    return ModelOut.model_validate(info)
