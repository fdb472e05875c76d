"""The studio face, at /: UUID ids and {items, total} lists."""

from fastapi import APIRouter

from backend.api.studio import (
    chunks,
    datasets,
    exports,
    files,
    hardware,
    health,
    jobs,
    model_info,
    projects,
    training,
)

router = APIRouter()
for module in (health, projects, model_info, files, chunks, datasets, hardware, training, exports, jobs):
    router.include_router(module.router)
