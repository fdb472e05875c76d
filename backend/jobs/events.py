"""What a job tells while it runs: a capped Redis stream per job, read from any point on."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

STREAM_LIMIT = 10_000
STREAM_DAYS = 7
FIRST = "0-0"
# A frozen Redis costs a job at most one second in eleven.
PUBLISH_SECONDS = 1.0
PAUSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """`id` is the stream's id ('milliseconds-sequence'), and the SSE id."""

    id: str
    name: str
    data: dict[str, Any]


class EventLog:
    """Writes and reads events. They are a convenience: a job is never hurt by a Redis that is down."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._silent_until = 0.0

    async def publish(self, job: UUID, name: str, data: dict[str, Any]) -> None:
        """Returns within PUBLISH_SECONDS; the event is lost when Redis is down, or while it is known not to answer."""
        if time.monotonic() < self._silent_until:
            return
        key = stream_key(job)
        started = time.monotonic()
        try:
            async with asyncio.timeout(PUBLISH_SECONDS), self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(key, {"event": name, "data": orjson.dumps(data).decode()}, maxlen=STREAM_LIMIT)
                pipe.expire(key, STREAM_DAYS * 86_400)
                await pipe.execute()
        except (RedisError, OSError) as error:
            log.warning("event %s of job %s is lost: %r", name, job, error)
            # A refused connection costs nothing; only one that does not answer is left alone for a while.
            if time.monotonic() - started > PUBLISH_SECONDS / 2:
                self._silent_until = time.monotonic() + PAUSE_SECONDS

    async def read(self, job: UUID, *, after: str = FIRST, limit: int = 500) -> Sequence[Event]:
        """The events after an id, oldest first."""
        return await self._range(job, f"({after}", "+", limit)

    async def find(self, job: UUID, event_id: str) -> Event | None:
        found = await self._range(job, event_id, event_id, 1)
        return found[0] if found else None

    async def delete(self, job: UUID) -> None:
        try:
            await self._redis.delete(stream_key(job))
        except (RedisError, OSError) as error:
            log.warning("events of job %s stay until they expire: %s", job, error)

    async def _range(self, job: UUID, first: str, last: str, limit: int) -> Sequence[Event]:
        rows: Any = await self._redis.xrange(stream_key(job), min=first, max=last, count=limit)
        return [Event(id=row_id, name=row["event"], data=orjson.loads(row["data"])) for row_id, row in rows]


def stream_key(job: UUID) -> str:
    return f"job:{job}:events"
