"""What a job tells while it runs: a capped Redis stream per job, read from any point on."""

import logging
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

    async def publish(self, job: UUID, name: str, data: dict[str, Any]) -> None:
        key = stream_key(job)
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(key, {"event": name, "data": orjson.dumps(data).decode()}, maxlen=STREAM_LIMIT)
                pipe.expire(key, STREAM_DAYS * 86_400)
                await pipe.execute()
        except (RedisError, OSError) as error:
            log.warning("event %s of job %s is lost: %s", name, job, error)

    async def read(self, job: UUID, *, after: str = FIRST, limit: int = 500) -> Sequence[Event]:
        """The events after an id, oldest first."""
        rows: Any = await self._redis.xrange(stream_key(job), min=f"({after}", count=limit)
        return [Event(id=row_id, name=row["event"], data=orjson.loads(row["data"])) for row_id, row in rows]

    async def delete(self, job: UUID) -> None:
        try:
            await self._redis.delete(stream_key(job))
        except (RedisError, OSError) as error:
            log.warning("events of job %s stay until they expire: %s", job, error)


def stream_key(job: UUID) -> str:
    return f"job:{job}:events"
