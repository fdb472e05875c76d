"""The OpenAI-compatible face at /v1: fine-tuned models by id, for clients that speak OpenAI's API."""

from fastapi import APIRouter

from backend.api.openai import chat, models

router = APIRouter()
router.include_router(chat.router)
router.include_router(models.router)
