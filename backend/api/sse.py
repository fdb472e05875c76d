"""Job events as text/event-stream: every event once, in order, from Last-Event-ID on, until the job ends."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from backend.jobs.events import FIRST, Event, EventLog, stream_key

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
RECHECK_SECONDS = 2.0
LIFETIME_SECONDS = 3600.0
RETRY_MS = 2000
TERMINAL = frozenset({"complete", "error"})
_BLOCK_MS = 200
_ID = re.compile(r"^\d{1,20}-\d{1,20}$")

# Says how a job ended (name and data of its last event), or None while it lives: read from the database.
EndOf = Callable[[], Awaitable[tuple[str, dict[str, object]] | None]]


class EventHub:
    """One reader per process that wakes the streams of a job when something new is in it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._seen: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def wakes(self, job: UUID, *, after: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set each time the job's stream has grown beyond `after`."""
        key, wake = stream_key(job), asyncio.Event()
        self._waiting.setdefault(key, set()).add(wake)
        self._seen.setdefault(key, after)
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
        try:
            yield wake
        finally:
            self._waiting[key].discard(wake)
            if not self._waiting[key]:
                del self._waiting[key]
                del self._seen[key]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _watch(self) -> None:
        while self._waiting:
            cursors: dict[Any, Any] = {key: self._seen[key] for key in self._waiting}
            try:
                grown: Any = await self._redis.xread(cursors, count=1000, block=_BLOCK_MS)
            except (RedisError, OSError) as error:
                log.warning("event reader waits for Redis: %s", error)
                await asyncio.sleep(0.5)
                continue
            for key, rows in grown or []:
                if key in self._waiting:
                    self._seen[key] = rows[-1][0]
                    for wake in self._waiting[key]:
                        wake.set()
        self._task = None


def resume_point(last_event_id: str | None) -> str:
    """The stream id to go on after; anything that is not one of ours means from the start."""
    return last_event_id if last_event_id and _ID.match(last_event_id) else FIRST


async def stream(events: EventLog, hub: EventHub, job: UUID, *, after: str, end_of: EndOf) -> AsyncIterator[bytes]:
    """Encoded events of one job after an id, then heartbeats while it is silent; returns after its last event.

    A worker may die between the job's end and its last event, and Redis may lose what it held: the end is therefore
    also looked up in the database, and told from there when the stream does not have it.
    """
    yield f"retry: {RETRY_MS}\n\n".encode()
    spoken = started = time.monotonic()
    last = after
    ended: tuple[str, dict[str, object]] | None = None
    async with hub.wakes(job, after=after) as wake:
        while time.monotonic() - started < LIFETIME_SECONDS:
            wake.clear()
            ended_before, ended = ended, await end_of()
            batch = await _read(events, job, last)
            for event in batch:
                yield encode(event)
                last, spoken = event.id, time.monotonic()
                if event.name in TERMINAL:
                    return
            if batch:
                continue
            # Seen twice, so the worker had its time to write the last event itself.
            if ended is not None and ended_before is not None:
                yield encode(Event(id=_following(last), name=ended[0], data=dict(ended[1])))
                return
            if time.monotonic() - spoken > HEARTBEAT_SECONDS:
                yield b": heartbeat\n\n"
                spoken = time.monotonic()
            await _wait(wake, RECHECK_SECONDS)


def encode(event: Event) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event.id.encode(), event.name.encode(), orjson.dumps(event.data))


def _following(event_id: str) -> str:
    """The id right after one, for an event that is in no stream: resuming from it gives nothing twice."""
    stamp, sequence = event_id.split("-")
    return f"{stamp}-{int(sequence) + 1}"


async def _read(events: EventLog, job: UUID, after: str) -> list[Event]:
    try:
        return list(await events.read(job, after=after))
    except (RedisError, OSError):
        return []


async def _wait(wake: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(wake.wait(), seconds)
    except TimeoutError:
        return
