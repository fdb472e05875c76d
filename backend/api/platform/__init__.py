"""The platform face, at /api: integer ids and bare lists."""

from fastapi import APIRouter

from backend.api.platform import (
    account,
    api_keys,
    auth,
    characters,
    contents,
    datasets,
    fine_tuning_files,
    fine_tuning_jobs,
    fine_tunings,
    helpers,
    models,
    onboarding,
    orders,
    pairs,
    payments,
    projects,
    sessions,
    tokens,
    users,
)

router = APIRouter()
router.include_router(auth.router)
router.include_router(api_keys.router)
router.include_router(users.router)
router.include_router(account.router)
router.include_router(tokens.router)
router.include_router(sessions.router)
router.include_router(projects.router)
router.include_router(contents.upload_router)
router.include_router(contents.router)
router.include_router(helpers.router)
router.include_router(datasets.router)
router.include_router(pairs.router)
router.include_router(pairs.rating)
router.include_router(models.router)
router.include_router(fine_tunings.router)
router.include_router(fine_tuning_files.router)
router.include_router(fine_tunings.waiting)
router.include_router(characters.router)
router.include_router(payments.router)
router.include_router(fine_tuning_jobs.router)
router.include_router(onboarding.router)
router.include_router(orders.router)
# Not counted by the rate limits, so it is included apart.
signed_router = payments.signed_router
