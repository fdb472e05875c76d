"""Renews leases from a thread with a loop of its own, so that a job that blocks its loop does not lose its lease."""

import asyncio
import logging
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from backend.jobs import queue
from backend.jobs.errors import LeaseLost
from backend.jobs.events import EventLog
from backend.jobs.queue import Claim
from backend.jobs.service import publish_end
from backend.jobs.states import JobState
from backend.kit import redis as kit_redis
from backend.kit.config import Settings
from backend.kit.db import Database
from celery_app import stopping

log = logging.getLogger(__name__)

# A loop that has not run its callbacks for so long is blocked by the job's code.
DEAF_SECONDS = 0.5
# A process whose job can neither hear nor end is worth less than a new one.
GIVE_UP_SECONDS = 60.0


class Reason(Enum):
    """Why a run must end."""

    CANCELLED = "its job was cancelled"
    LOST = "its lease is lost"
    STOPPING = "its worker stops"


@dataclass(slots=True)
class Watch:
    """One run under watch: the job's task in the job's loop, and why it was told to end."""

    claim: Claim
    task: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop
    reason: Reason | None = None
    told_at: float = 0.0
    heard: bool = False
    ended: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, reason: Reason) -> None:
        self.reason, self.told_at = reason, time.monotonic()
        self.loop.call_soon_threadsafe(self._hear)

    def _hear(self) -> None:
        self.heard = True
        self.task.cancel()


class Heartbeat:
    """A thread that renews the leases of the claims given to it, and tells their tasks when they must end.

    A cancelled job that hears of it has the time that it needs to clean up, and keeps its lease meanwhile. One that
    blocks its loop cannot hear: its row is ended from here, what it still tries to write is refused by the fence, and
    when it goes on for GIVE_UP_SECONDS more, the process is killed for the pool to replace.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._db: Database | None = None

    def watch(self, claim: Claim, task: "asyncio.Future[Any]") -> Watch:
        """Starts to renew `claim`; cancels `task` when its job is cancelled, lost, or to be put back."""
        if self._loop is None:
            self._start()
        assert self._loop is not None
        watch = Watch(claim, task, task.get_loop())
        asyncio.run_coroutine_threadsafe(self._attend(watch), self._loop)
        return watch

    def unwatch(self, watch: Watch) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(watch.over.set)

    def close(self) -> None:
        if self._loop is None or self._thread is None or self._db is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._db.close(), self._loop)
        try:
            closing.result(timeout=5)
        except Exception as error:  # the process ends anyway
            log.warning("heartbeat's connections not closed: %r", error)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()
        self._loop = self._thread = self._db = None

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._db = Database(self._settings.database_url, pool_size=1, max_overflow=4, pre_ping=True)
        self._thread = threading.Thread(target=self._loop.run_forever, name="heartbeat", daemon=True)
        self._thread.start()

    async def _attend(self, watch: Watch) -> None:
        while not await self._over(watch, self._settings.job_heartbeat_seconds):
            try:
                await self._beat(watch)
            except LeaseLost:
                if watch.reason in (None, Reason.STOPPING) and not watch.over.is_set():
                    watch.tell(Reason.LOST)
            except Exception as error:  # the database is away: the fence still guards every write
                log.warning("lease of job %s not renewed: %r", watch.claim.public_id, error)
            if watch.reason is not None and not watch.heard:
                await self._insist(watch)

    async def _beat(self, watch: Watch) -> None:
        """Renews the lease, also while a job that was told to end cleans up."""
        if watch.reason is Reason.LOST or watch.ended:
            return
        lease = self._settings.job_lease_seconds
        async with asyncio.timeout(lease), self._database.transaction() as session:
            cancelled = await queue.renew(session, watch.claim, lease_seconds=lease)
        if watch.over.is_set():
            return
        if cancelled and watch.reason is not Reason.CANCELLED:
            watch.tell(Reason.CANCELLED)
        elif watch.reason is None and stopping.announced():
            watch.tell(Reason.STOPPING)

    async def _insist(self, watch: Watch) -> None:
        """For a job that blocks its loop."""
        if await self._over(watch, DEAF_SECONDS) or watch.heard:
            return
        if watch.reason is Reason.CANCELLED and not watch.ended:
            await self._end(watch)
        if time.monotonic() - watch.told_at > GIVE_UP_SECONDS:
            log.error("job %s blocks its process, which is killed: %s", watch.claim.public_id, watch.reason)
            os.kill(os.getpid(), signal.SIGKILL)

    async def _end(self, watch: Watch) -> None:
        try:
            async with self._database.transaction() as session:
                job = await queue.finish(session, watch.claim, JobState.CANCELLED)
        except LeaseLost:
            watch.ended = True
            return
        except Exception as error:
            log.warning("cancelled job %s not ended yet: %r", watch.claim.public_id, error)
            return
        watch.ended = True
        log.warning("job %s blocks its loop and was ended from outside", watch.claim.public_id)
        redis = kit_redis.connect(self._settings.redis_url)
        try:
            await publish_end(EventLog(redis), job)
        finally:
            await redis.aclose()

    async def _over(self, watch: Watch, seconds: float) -> bool:
        try:
            await asyncio.wait_for(watch.over.wait(), seconds)
        except TimeoutError:
            return False
        return True

    @property
    def _database(self) -> Database:
        assert self._db is not None
        return self._db
