"""The API application: `uvicorn backend.main:app`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

import backend.models  # noqa: F401  (every mapped class must be known before the first query)
from backend import __version__
from backend.api import errors, openai, platform, studio
from backend.api.auth import VerifiedTokens
from backend.api.bodies import PlainBodies
from backend.api.idempotency import REPLAYED
from backend.api.middleware import LocalGuard, RequestId
from backend.api.openai.errors import OpenAIErrorOut, OpenAIErrors
from backend.api.platform.answer_stream import ANSWER_HEADERS
from backend.api.rate_limit import HEADERS as RATE_LIMIT_HEADERS
from backend.api.rate_limit import RateLimits, RequestCounter, rate_limit_docs
from backend.api.services import Services
from backend.api.sse import EventHub
from backend.jobs.events import EventLog
from backend.kit import redis as kit_redis
from backend.kit.background import Background
from backend.kit.broker import Broker
from backend.kit.config import Settings, get_settings
from backend.kit.crypto import Sealer
from backend.kit.db import Database
from backend.kit.log import configure_logging
from backend.kit.mail import Mailer
from backend.providers.base_models import ModelLibrary
from backend.providers.huggingface import HubClient
from backend.providers.stripe import Stripe, load_sdk
from backend.storage import open_storage
from backend.users.personal_tokens import TokenUses
from backend.users.recovery import Post
from backend.users.service import seed_local_owner
from backend.users.tokens import TokenSigner

DESCRIPTION = """Turns documents into a training set, fine-tunes a language model on it, and proves that it got better.

The **studio** face lies at `/` (UUIDs), the **platform** face at `/api` (integers); they show the same things.
Fine-tuned models answer at `/v1` as well, to clients that speak OpenAI's API."""


_FACES = {"api": "platform", "v1": "openai"}
# What a page of another origin may read.
_EXPOSED = [
    *("X-Request-ID", "X-Total-Count", REPLAYED, "Retry-After", "Content-Disposition", "Content-Language"),
    *RATE_LIMIT_HEADERS,
    *ANSWER_HEADERS,
]


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or get_settings()
    configure_logging(settings.log_level, json=settings.log_json)
    app = FastAPI(
        title="FineTuneFlow",
        version=__version__,
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0"},
        lifespan=lambda app: _lifespan(app, settings),
        generate_unique_id_function=_operation_id,
    )
    errors.install(app)
    app.include_router(studio.router)
    app.include_router(platform.router, prefix="/api", responses=rate_limit_docs())
    app.include_router(platform.signed_router, prefix="/api")
    app.include_router(openai.router, prefix="/v1", responses=rate_limit_docs(OpenAIErrorOut))
    # The last one added is the outermost.
    app.add_middleware(PlainBodies)
    if settings.rate_limits:
        app.add_middleware(RateLimits, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    if settings.auth_mode == "local":
        app.add_middleware(LocalGuard, hosts=settings.allowed_hosts, origins=settings.cors_origins)
    app.add_middleware(OpenAIErrors)
    app.add_middleware(RequestId)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI, settings: Settings) -> AsyncIterator[None]:
    redis = kit_redis.connect(settings.redis_url)
    db = Database(
        settings.database_url, pool_size=settings.database_pool_size, max_overflow=settings.database_max_overflow
    )
    background = Background()
    services = Services(
        settings=settings,
        db=db,
        redis=redis,
        events=EventLog(redis),
        hub=EventHub(redis),
        broker=Broker(settings.redis_url),
        storage=open_storage(settings.storage_url),
        library=_library(settings),
        signer=TokenSigner(settings.secret_key.get_secret_value()),
        sealer=Sealer(settings.sealing_keys),
        background=background,
        token_uses=TokenUses(db, background),
        post=Post(Mailer(settings), background, settings.frontend_url),
        stripe=Stripe(settings),
    )
    if settings.stripe_secret_key.get_secret_value() or settings.stripe_webhook_secrets:
        # Now, and not while the first event waits for its answer.
        await asyncio.to_thread(load_sdk)
    if settings.auth_mode == "local":
        async with services.db.transaction() as session:
            services.local_owner = await seed_local_owner(session)
    app.state.services = services
    app.state.verified_tokens = VerifiedTokens()
    app.state.request_counter = RequestCounter(
        redis, window_seconds=settings.rate_limit_window_seconds, enabled=settings.rate_limits
    )
    try:
        yield
    finally:
        await background.close()
        await app.state.request_counter.close()
        await services.hub.close()
        await services.stripe.close()
        services.broker.close()
        await redis.aclose()
        await services.db.close()


def _library(settings: Settings) -> ModelLibrary:
    hub = HubClient(
        settings.hf_endpoint, settings.hf_token.get_secret_value(), timeout_seconds=settings.hf_timeout_seconds
    )
    return ModelLibrary(settings.models_path, hub)


def _operation_id(route: APIRoute) -> str:
    face = route.path.lstrip("/").split("/")[0]
    return f"{_FACES.get(face, 'studio')}_{route.name}"


def __getattr__(name: str) -> Any:
    # `app` is made when a server asks for it, so that importing this module needs no settings.
    if name == "app":
        return create_app()
    raise AttributeError(name)
