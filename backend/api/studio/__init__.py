"""The studio face, at /: UUID ids and {items, total} lists."""

from fastapi import APIRouter

from backend.api.rate_limit import rate_limit_docs
from backend.api.studio import (
    chunks,
    dataset_versions,
    datasets,
    evaluation,
    examples,
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
router.include_router(health.router)
for module in (
    projects,
    model_info,
    files,
    chunks,
    datasets,
    examples,
    dataset_versions,
    hardware,
    training,
    evaluation,
    exports,
    jobs,
):
    router.include_router(module.router, responses=rate_limit_docs())
router.include_router(examples.rating, responses=rate_limit_docs())
