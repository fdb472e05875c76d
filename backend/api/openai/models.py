"""The caller's finished fine-tunings as models."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from backend.api.auth import authenticate
from backend.api.openai.deps import KeyDep, get_model, name_of
from backend.api.openai.errors import openai_responses
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.training import answers, queries
from backend.training.models import FineTuning

router = APIRouter(tags=["openai"])


class ModelOut(BaseModel):
    """`owned_by` is where it was trained: `local`, or the provider."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelsOut(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelOut]


@router.get("/models", responses=openai_responses(401))
async def list_models(key: KeyDep, session: SessionDep, services: ServicesDep) -> ModelsOut:
    """All that can be asked, newest first."""
    owner = await authenticate(services, session, key)
    return ModelsOut(data=[_out(run) for run in await queries.list_finished(session, owner)])


@router.get("/models/{model}", responses=openai_responses(400, 401, 404, 422))
async def get_model_by_name(
    model: Annotated[str, Path(max_length=100)], key: KeyDep, session: SessionDep, services: ServicesDep
) -> ModelOut:
    run = await get_model(session, await authenticate(services, session, key), model)
    answers.require_finished(run)
    return _out(run)


def _out(run: FineTuning) -> ModelOut:
    finished_at = run.completed_at or run.created_at
    return ModelOut(id=name_of(run), created=int(finished_at.timestamp()), owned_by=run.provider)
