"""What a job's code sees while it runs: fenced transactions, progress and events."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs import queue
from backend.jobs.events import EventLog
from backend.jobs.queue import Claim
from backend.kit.db import Database

_REPORT_SECONDS = 0.5


class JobRun:
    """One run of a job by the worker that holds its claim."""

    def __init__(self, db: Database, events: EventLog, claim: Claim) -> None:
        self.claim = claim
        self._db = db
        self._events = events
        self._reported_at = 0.0

    @property
    def params(self) -> dict[str, Any]:
        return self.claim.params

    @property
    def project_id(self) -> int:
        assert self.claim.project_id is not None, f"a {self.claim.kind} job belongs to a project"
        return self.claim.project_id

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A transaction for SELECTs; it takes no lock."""
        async with self._db.transaction() as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that commits only if this run still holds the job. Raises LeaseLost otherwise."""
        async with self._db.transaction() as session:
            await queue.hold(session, self.claim)
            yield session

    async def progress(self, pct: float, message: str, *, force: bool = False) -> None:
        """Tells how far the job is, 0 to 100; calls that come too fast are dropped unless forced."""
        now = time.monotonic()
        if not force and now - self._reported_at < _REPORT_SECONDS:
            return
        self._reported_at = now
        async with self._db.transaction() as session:
            kept = await queue.report(session, self.claim, progress_pct=pct, message=message)
        await self.emit("progress", {"progress_pct": round(kept), "message": message})

    async def emit(self, name: str, data: dict[str, Any]) -> None:
        await self._events.publish(self.claim.public_id, name, data)
