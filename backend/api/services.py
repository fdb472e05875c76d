"""What the API process holds for its whole life, made once in the lifespan."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from backend.api.sse import EventHub
from backend.jobs.events import EventLog
from backend.kit.background import Background
from backend.kit.broker import Broker
from backend.kit.config import Settings
from backend.kit.crypto import Sealer
from backend.kit.db import Database
from backend.kit.owner import Owner
from backend.providers.base_models import ModelLibrary
from backend.providers.stripe import Stripe
from backend.storage import Storage
from backend.users.personal_tokens import TokenUses
from backend.users.recovery import Post
from backend.users.service import Lifetimes
from backend.users.tokens import TokenSigner


@dataclass(slots=True)
class Services:
    """The process's own: settings, connections, and the seeded owner when there is one."""

    settings: Settings
    db: Database
    redis: Redis
    events: EventLog
    hub: EventHub
    broker: Broker
    storage: Storage
    library: ModelLibrary
    signer: TokenSigner
    sealer: Sealer
    background: Background
    token_uses: TokenUses
    post: Post
    stripe: Stripe
    local_owner: Owner | None = None

    @property
    def lifetimes(self) -> Lifetimes:
        return Lifetimes(
            access=timedelta(minutes=self.settings.access_token_minutes),
            refresh=timedelta(days=self.settings.refresh_token_days),
        )


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def get_services(request: Request) -> Services:
    # async although it waits for nothing: FastAPI sends plain functions to a thread, which costs more than they do.
    return services_of(request)


ServicesDep = Annotated[Services, Depends(get_services)]
