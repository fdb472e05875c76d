"""What the service's gpu workers can train with."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from backend.api.auth import OwnerDep
from backend.api.session import SessionDep
from backend.training import hardware

router = APIRouter(prefix="/hardware", tags=["hardware"])


class HardwareOut(BaseModel):
    has_nvidia_smi: bool
    gpu_name: str | None
    gpu_count: int
    vram_total_gb: float | None
    vram_free_gb: float | None
    driver_version: str | None
    cuda_runtime: str | None
    torch_version: str | None
    torch_cuda: str | None
    cuda_available: bool
    bnb_available: bool
    recommended_method: str | None
    recommendation_reason: str
    notes: list[str]
    warnings: list[str]


@router.get("/check", response_model=HardwareOut)
async def check_hardware(_: OwnerDep, session: SessionDep) -> Any:
    return await hardware.check(session)
