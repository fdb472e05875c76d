"""Renews leases from a thread with a loop of its own, so that a job that blocks its loop does not lose its lease."""

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from backend.jobs import queue
from backend.jobs.errors import LeaseLost
from backend.jobs.queue import Claim
from backend.kit.config import Settings
from backend.kit.db import Database

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Watch:
    """One claim under watch. `stop` is called once, from the heartbeat's thread, when the job must end."""

    claim: Claim
    stop: Callable[[], None]
    cancelled: bool = False
    lost: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Heartbeat:
    """A thread that renews the leases of the claims given to it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._db: Database | None = None

    def watch(self, claim: Claim, stop: Callable[[], None]) -> Watch:
        """Starts to renew `claim`; calls `stop` when its job is cancelled or the lease is lost."""
        if self._loop is None:
            self._start()
        assert self._loop is not None
        watch = Watch(claim, stop)
        asyncio.run_coroutine_threadsafe(self._renew(watch), self._loop)
        return watch

    def unwatch(self, watch: Watch) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(watch.wake.set)

    def close(self) -> None:
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop = self._thread = self._db = None

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._db = Database(self._settings.database_url, pool_size=1, max_overflow=4, pre_ping=True)
        self._thread = threading.Thread(target=self._loop.run_forever, name="heartbeat", daemon=True)
        self._thread.start()

    async def _renew(self, watch: Watch) -> None:
        assert self._db is not None
        while not await self._ended(watch):
            try:
                async with self._db.transaction() as session:
                    watch.cancelled = await queue.renew(
                        session, watch.claim, lease_seconds=self._settings.job_lease_seconds
                    )
            except LeaseLost:
                watch.lost = True
            except Exception as error:  # the database is away: the fence still guards every write
                log.warning("lease of job %s not renewed: %s", watch.claim.public_id, error)
                continue
            if (watch.cancelled or watch.lost) and not watch.wake.is_set():
                watch.stop()
                return

    async def _ended(self, watch: Watch) -> bool:
        try:
            await asyncio.wait_for(watch.wake.wait(), self._settings.job_heartbeat_seconds)
        except TimeoutError:
            return False
        return True
