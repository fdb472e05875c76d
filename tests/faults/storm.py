"""Jobs under fire: workers killed about every two seconds and Redis several times, and what came of it."""

import asyncio
import os
import random
import signal
import socket
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.faults.plant import Plant

WORKERS = ("one", "two")
# Live jobs at most, so that a rescue is not hidden behind a long queue.
WINDOW = 60
KILL_SECONDS = 2.0
# How often the whole worker is killed, and not one of its processes.
WHOLE_WORKER = 0.3
REDIS_OUTAGE_SECONDS = (0.1, 3.0)
LOST_SECONDS = 120.0


@dataclass
class Outcome:
    """What happened to the jobs. `rescues` are seconds from a loss to the next start (or the end) of a job it hit."""

    jobs: int
    lost: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    rescues: list[float] = field(default_factory=list)
    worker_kills: int = 0
    redis_kills: int = 0
    attempts: int = 0
    slowest_enqueue_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def longest_rescue_seconds(self) -> float:
        return max(self.rescues, default=0.0)

    def __str__(self) -> str:
        return (
            f"jobs={self.jobs} lost={len(self.lost)} failed={len(self.failed)} doubled={len(self.doubled)} "
            f"worker_kills={self.worker_kills} redis_kills={self.redis_kills} runs={self.attempts} "
            f"rescued={len(self.rescues)} longest_rescue={self.longest_rescue_seconds:.1f}s "
            f"slowest_enqueue={self.slowest_enqueue_seconds:.2f}s wall={self.seconds:.0f}s"
        )


class Storm:
    """One run of many jobs while things are killed."""

    def __init__(self, plant: Plant, *, jobs: int, redis_kills: int, seed: int = 1) -> None:
        self.plant = plant
        self.outcome = Outcome(jobs)
        self._redis_kills = redis_kills
        self._random = random.Random(seed)
        self._ids: list[int] = []
        # Job, fence at the loss, time of the loss: the next start has a higher fence.
        self._losses: list[tuple[int, int, datetime]] = []

    async def run(self) -> Outcome:
        started = time.monotonic()
        for name in (*WORKERS, "control", "beat"):
            self.plant.start(name)
        killer = asyncio.create_task(self._kill_workers())
        redis_killer = asyncio.create_task(self._kill_redis())
        try:
            await self._feed()
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
        await redis_killer
        await self._drain()
        self.outcome.seconds = time.monotonic() - started
        await self._judge()
        return self.outcome

    async def _feed(self) -> None:
        """As the API does it: row, commit, message."""
        while len(self._ids) < self.outcome.jobs:
            live = (await self.plant.rows("SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')"))[0][0]
            for _ in range(min(WINDOW - live, self.outcome.jobs - len(self._ids))):
                before = time.monotonic()
                self._ids.append(await self.plant.enqueue())
                spent = time.monotonic() - before
                self.outcome.slowest_enqueue_seconds = max(self.outcome.slowest_enqueue_seconds, spent)
            await asyncio.sleep(0.05)

    async def _drain(self) -> None:
        deadline = time.monotonic() + LOST_SECONDS
        while time.monotonic() < deadline:
            if not (await self.plant.rows("SELECT 1 FROM jobs WHERE state IN ('queued', 'running') LIMIT 1")):
                return
            await asyncio.sleep(0.1)

    async def _kill_workers(self) -> None:
        """Workers in turn, as a whole or one of the processes that run jobs."""
        while True:
            await asyncio.sleep(KILL_SECONDS * self._random.uniform(0.7, 1.3))
            name = WORKERS[self.outcome.worker_kills % len(WORKERS)]
            await (self._kill(name) if self._random.random() < WHOLE_WORKER else self._kill_one_of(name))

    async def _kill(self, name: str) -> None:
        await self._note_kill(self.plant.kill(name))
        self.plant.start(name)

    async def _kill_one_of(self, name: str) -> None:
        """As the kernel does it when memory is short; the worker starts another process."""
        _, *running = self.plant.pids(self.plant.processes[name])
        if running:
            pid = self._random.choice(running)
            os.kill(pid, signal.SIGKILL)
            await self._note_kill([pid])

    async def _note_kill(self, pids: list[int]) -> None:
        self.outcome.worker_kills += 1
        workers = [f"{socket.gethostname()}:{pid}" for pid in pids]
        await self._note_losses("state = 'running' AND worker = ANY(:workers)", workers=workers)

    async def _kill_redis(self) -> None:
        """When so and so many jobs are in; the second time together with both workers, the control worker and beat."""
        for number in range(1, self._redis_kills + 1):
            while len(self._ids) < self.outcome.jobs * number // (self._redis_kills + 1):
                await asyncio.sleep(0.05)
            self.plant.kill_redis()
            self.outcome.redis_kills += 1
            await self._note_losses("state = 'queued'")
            if number == 2:
                for name in (*WORKERS, "control", "beat"):
                    await self._kill(name)
            await asyncio.sleep(self._random.uniform(*REDIS_OUTAGE_SECONDS))
            self.plant.start_redis()

    async def _note_losses(self, which: str, **values: object) -> None:
        self._losses += [
            (job_id, fence, at)
            for job_id, fence, at in await self.plant.rows(
                f"SELECT id, fence, clock_timestamp() FROM jobs WHERE {which}", **values
            )
        ]

    async def _judge(self) -> None:
        outcome, rows = self.outcome, self.plant.rows
        states = {job_id: (state, at) for job_id, state, at in await rows("SELECT id, state, finished_at FROM jobs")}
        outcome.lost = [job for job in self._ids if states.get(job, ("gone", None))[0] in ("queued", "running", "gone")]
        outcome.failed = [job for job in self._ids if states[job][0] in ("failed", "cancelled")]
        outcome.attempts = (await rows("SELECT count(*) FROM starts"))[0][0]
        for table in ("effects", "endings"):
            counts = dict(tuple(row) for row in await rows(f"SELECT job_id, count(*) FROM {table} GROUP BY 1"))
            outcome.doubled += [job for job in self._ids if counts.get(job, 0) > 1]
            outcome.lost += [job for job in self._ids if counts.get(job, 0) == 0]
        starts: dict[int, list[tuple[int, datetime]]] = {}
        for job, fence, at in await rows("SELECT job_id, fence, at FROM starts"):
            starts.setdefault(job, []).append((fence, at))
        for job, fence, lost_at in self._losses:
            later = [at for number, at in starts.get(job, []) if number > fence]
            again = min(later) if later else states[job][1]
            if again is not None:  # the lost are counted above
                outcome.rescues.append((again - lost_at).total_seconds())


async def storm(database_url: str, folder: Path, *, jobs: int, redis_kills: int, aof: bool, seed: int = 1) -> Outcome:
    """Runs `jobs` jobs on an empty database while its workers and its Redis (with or without AOF) are killed."""
    async with Plant(database_url, folder, aof=aof) as plant:
        outcome = await Storm(plant, jobs=jobs, redis_kills=redis_kills, seed=seed).run()
        if outcome.lost or outcome.failed or outcome.doubled:
            print(plant.logs())
        return outcome
