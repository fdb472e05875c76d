"""One event loop, one engine and one Redis client per worker process, made at first use after the fork."""

import asyncio
import os
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from redis.asyncio import Redis

from backend.jobs.events import EventLog
from backend.kit import redis as kit_redis
from backend.kit.broker import Broker
from backend.kit.config import Settings, get_settings
from backend.kit.db import Database
from backend.storage import Storage, open_storage
from celery_app.heartbeat import Heartbeat

T = TypeVar("T")


class Runtime:
    """Everything that a job needs, living as long as its process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.runner = asyncio.Runner()
        self.db = Database(settings.database_url, pool_size=5, max_overflow=10, pre_ping=True)
        self.redis: Redis = kit_redis.connect(settings.redis_url)
        self.events = EventLog(self.redis)
        self.broker = Broker(settings.redis_url)
        self.storage: Storage = open_storage(settings.storage_url)
        self.heartbeat = Heartbeat(settings)
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def close(self) -> None:
        self.heartbeat.close()
        self.broker.close()
        self.runner.run(self._close())
        self.runner.close()

    async def _close(self) -> None:
        await self.redis.aclose()
        await self.db.close()


_current: tuple[int, Runtime] | None = None


def get() -> Runtime:
    """This process's runtime. One that came through a fork belongs to the parent and is left alone."""
    global _current
    if _current is None or _current[0] != os.getpid():
        _current = (os.getpid(), Runtime(get_settings()))
    return _current[1]


def close() -> None:
    global _current
    if _current is not None and _current[0] == os.getpid():
        _current[1].close()
        _current = None
