"""Job events as text/event-stream: every event once, in order, from Last-Event-ID on, until the job ends."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from backend.jobs.events import FIRST, Event, EventLog, stream_key

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
RECHECK_SECONDS = 2.0
# What a worker has between the commit of a job's end and its last event.
LAST_EVENT_SECONDS = 1.0
LIFETIME_SECONDS = 3600.0
RETRY_MS = 2000
TERMINAL = frozenset({"complete", "error"})
_BLOCK_MS = 200
_ID = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)
_LARGEST = 2**64 - 1

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
        # The earliest of all: one client's far-off id must not keep the others asleep.
        self._seen[key] = min(self._seen.get(key, after), after, key=_parts)
        if self._task is None or self._task.done():
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


class EventStream(StreamingResponse):
    """The answer: a job's events from `after` on, or 204 for a client that has the last one already.

    204 is what stops an EventSource, which would otherwise come back for ever. It is found out while the answer is
    sent, when the request's own transaction is over.
    """

    def __init__(self, events: EventLog, hub: EventHub, job: UUID, *, after: str, ended: bool, end_of: EndOf) -> None:
        super().__init__(
            stream(events, hub, job, after=after, end_of=end_of),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._events, self._job, self._after, self._ended = events, job, after, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if await has_everything(self._events, self._job, after=self._after, ended=self._ended):
            await Response(status_code=204)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def has_everything(events: EventLog, job: UUID, *, after: str, ended: bool) -> bool:
    """Whether `after` is the id of the last event of a job that has ended."""
    if after == FIRST or not ended:
        return False
    try:
        if after == _end_id(after):  # told from the database, because the stream did not have it
            return not await events.read(job, after=after, limit=1)
        event = await events.find(job, after)
    except (RedisError, OSError):
        return False
    return event is not None and event.name in TERMINAL


def resume_point(last_event_id: str | None) -> str:
    """The stream id to go on after; anything that is not one of ours means from the start."""
    if last_event_id is None or not _ID.fullmatch(last_event_id) or max(_parts(last_event_id)) > _LARGEST:
        return FIRST
    return last_event_id


async def stream(events: EventLog, hub: EventHub, job: UUID, *, after: str, end_of: EndOf) -> AsyncIterator[bytes]:
    """Encoded events of one job after an id, then heartbeats while it is silent; returns after its last event.

    A worker may die between the job's end and its last event, and Redis may lose what it held: the end is therefore
    also looked up in the database, and told from there when the stream does not have it.
    """
    yield f"retry: {RETRY_MS}\n\n".encode()
    spoken = started = time.monotonic()
    ended_at: float | None = None
    last = after
    async with hub.wakes(job, after=after) as wake:
        while time.monotonic() - started < LIFETIME_SECONDS:
            wake.clear()
            batch = await _read(events, job, last)
            for event in batch:
                yield encode(event)
                last, spoken = event.id, time.monotonic()
                if event.name in TERMINAL:
                    return
            if batch:
                continue
            end, now = await _look_up(end_of), time.monotonic()
            if end is not None:
                ended_at = ended_at or now
                if now - ended_at >= LAST_EVENT_SECONDS:
                    yield encode(Event(id=_end_id(last), name=end[0], data=dict(end[1])))
                    return
            if now - spoken > HEARTBEAT_SECONDS:
                yield b": heartbeat\n\n"
                spoken = now
            await _wait(wake, RECHECK_SECONDS if end is None else LAST_EVENT_SECONDS)


def encode(event: Event) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event.id.encode(), event.name.encode(), orjson.dumps(event.data))


def _end_id(last: str) -> str:
    """The id of an end that is in no stream: the largest one of its millisecond, so that nothing comes in between."""
    return f"{last.split('-')[0]}-{_LARGEST}"


def _parts(event_id: str) -> tuple[int, int]:
    stamp, sequence = event_id.split("-")
    return int(stamp), int(sequence)


async def _look_up(end_of: EndOf) -> tuple[str, dict[str, object]] | None:
    try:
        return await end_of()
    except Exception as error:  # the database is away: the stream goes on, and the end is found later
        log.warning("the end of a job cannot be looked up: %r", error)
        return None


async def _read(events: EventLog, job: UUID, after: str) -> Sequence[Event]:
    try:
        return await events.read(job, after=after)
    except (RedisError, OSError):
        return []


async def _wait(wake: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(wake.wait(), seconds)
    except TimeoutError:
        return
