"""Workers, control worker, beat and a Valkey of their own on one database, to be killed at will."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import text

from backend.embedded.child import end_all, wait_ready
from backend.embedded.valkey import Valkey
from backend.jobs import queue
from backend.jobs.models import Job
from backend.kit.broker import Broker
from backend.kit.db import Database
from backend.users.models import User
from tests.faults.worker_app import KIND, TABLES

REPOSITORY = Path(__file__).parents[2]
QUIET = ("--without-gossip", "--without-mingle", "--disable-prefetch", "-l", "warning")


class Plant:
    """What is started here is remembered by its process id, and ended by it."""

    def __init__(self, database_url: str, folder: Path, *, aof: bool) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.database_url = database_url
        self.db = Database(database_url, pool_size=5, max_overflow=10, pre_ping=True)
        self.valkey = Valkey(folder / "valkey", fast=not aof)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.user_id = 0

    async def __aenter__(self) -> "Plant":
        self.valkey.prepare()
        self.start_redis()
        self.broker = Broker(self.valkey.url())
        async with self.db.transaction() as session:
            for statement in TABLES.strip().split("\n"):
                await session.execute(text(statement))
            user = User(email=f"{secrets.token_hex(8)}@example.com", password_hash="!", name="Owner")
            session.add(user)
            await session.flush()
            self.user_id = user.id
        return self

    async def __aexit__(self, *failure: object) -> None:
        for name in list(self.processes):
            self.kill(name)
        end_all([self.valkey])
        self.broker.close()
        await self.db.close()

    def start(self, name: str) -> None:
        """`control`, `beat`, `gpu`, `llm...`, or a worker with two processes under any other name."""
        if name == "beat":
            words = ["beat", "-s", str(self.folder / "schedule"), "--pidfile=", "-l", "warning"]
        elif name == "control":
            words = ["worker", "-Q", "control", "-P", "solo", "-n", "control@faults", *QUIET]
        elif name == "gpu":
            words = ["worker", "-Q", "gpu", "-c", "1", "-n", "gpu@faults", *QUIET]
        elif name.startswith("llm"):
            words = ["worker", "-Q", "llm", "-c", "2", "-n", f"{name}.{secrets.token_hex(4)}@faults", *QUIET]
        else:
            words = ["worker", "-Q", "default", "-c", "2", "-n", f"{name}.{secrets.token_hex(4)}@faults", *QUIET]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.faults.worker_app", *words],
                cwd=REPOSITORY,
                env={**os.environ, **self._environment()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name: str) -> list[int]:
        """SIGKILL to the whole session; returns the ids of the processes that it had."""
        process = self.processes.pop(name)
        pids = self.pids(process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return pids

    def signal_group(self, name: str, number: signal.Signals) -> None:
        os.killpg(self.processes[name].pid, number)

    def pids(self, process: subprocess.Popen[bytes]) -> list[int]:
        """The processes of its session, itself first."""
        found = [pid for pid, session in _sessions() if session == process.pid and pid != process.pid]
        return [process.pid, *found]

    def start_redis(self) -> None:
        self.valkey.launch()
        wait_ready([self.valkey], 20)

    def kill_redis(self) -> None:
        assert self.valkey.process is not None
        self.valkey.process.kill()
        self.valkey.collect()

    async def enqueue(self, **params: Any) -> int:
        async with self.db.transaction() as session:
            job = await queue.enqueue(session, self.broker, KIND, user_id=self.user_id, project_id=None, params=params)
        return job.id

    async def rows(self, statement: str, **values: Any) -> list[Any]:
        async with self.db.transaction() as session:
            return list((await session.execute(text(statement), values)).all())

    async def job(self, job_id: int) -> Job:
        async with self.db.transaction() as session:
            return await session.get_one(Job, job_id)

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def _environment(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.valkey.url(),
            "DATA_DIR": str(self.folder / "data"),
            "SECRET_KEY": "not used by workers, but long enough for the settings",
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def _sessions() -> Iterator[tuple[int, int]]:
    """Every process with the id of its session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), os.getsid(int(entry.name))


def patience(seconds: float) -> Iterator[float]:
    """The seconds so far, until there are too many."""
    started = time.monotonic()
    while (spent := time.monotonic() - started) < seconds:
        yield spent
