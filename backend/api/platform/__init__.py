"""The platform face, at /api: integer ids and bare lists."""

from fastapi import APIRouter

from backend.api.platform import auth, users

router = APIRouter()
router.include_router(auth.router)
router.include_router(users.router)
