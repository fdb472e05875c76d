"""Whether the service and what it stands on are up."""

import asyncio
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from backend import __version__
from backend.api.services import ServicesDep

router = APIRouter(tags=["health"])

_PATIENCE_SECONDS = 3.0


class HealthOut(BaseModel):
    status: Literal["ok", "degraded"]
    db: Literal["connected", "disconnected"]
    redis: Literal["connected", "disconnected"]
    version: str


@router.get("/health", response_model=HealthOut, responses={503: {"model": HealthOut}})
async def check_health(services: ServicesDep) -> JSONResponse:
    db, redis = await asyncio.gather(_answers(services.db.ping()), _answers(services.redis.ping()))
    body = HealthOut(
        status="ok" if db and redis else "degraded",
        db="connected" if db else "disconnected",
        redis="connected" if redis else "disconnected",
        version=__version__,
    )
    return JSONResponse(body.model_dump(), status_code=200 if db and redis else 503)


async def _answers(ping: object) -> bool:
    try:
        await asyncio.wait_for(ping, _PATIENCE_SECONDS)  # type: ignore[arg-type]  # two libraries, two awaitables
    except Exception:
        return False
    return True
