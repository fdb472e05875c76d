"""The child process that holds the models: started when the first question comes, ended when none has come for long."""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from backend.kit.config import Settings
from backend.training.child import child_environment

log = logging.getLogger(__name__)

CRASHED = "crashed"
ENDS = frozenset({"done", "failed", CRASHED})
_LINE_BYTES = 1024 * 1024
_LOG_BYTES = 5_000_000
_STOP_SECONDS = 5.0

Event = dict[str, Any]


class ServingChild:
    """Runs `python -m backend.trainers.serve`, at most one at a time, and tells its events to who asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.data_dir / "serving"
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        # With the process that was asked: one that has just ended must not speak for its successor.
        self._asked: dict[str, tuple[asyncio.subprocess.Process, asyncio.Queue[Event]]] = {}
        self._starting = asyncio.Lock()
        self._used_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def idle_seconds(self) -> float:
        """How long nothing has been asked; 0 while an answer is being made."""
        return 0.0 if self._asked else time.monotonic() - self._used_at

    async def answer(
        self, id: UUID, command: dict[str, Any], *, wait_seconds: float
    ) -> AsyncGenerator[Event | None, None]:
        """The events of one question up to `done`, `failed` or `crashed`; None each time that none came for so long.

        An answer that is not read to its end is cancelled.
        """
        name = str(id)
        events: asyncio.Queue[Event] = asyncio.Queue()
        process = await self._started()
        self._asked[name] = process, events
        ended = False
        try:
            await self._send(process, {"command": "answer", "id": name, **command})
            while not ended:
                event = await _next(events, wait_seconds)
                ended = event is not None and event["event"] in ENDS
                yield event
        finally:
            del self._asked[name]
            self._used_at = time.monotonic()
            if not ended:
                with suppress(OSError, RuntimeError):
                    _write(process, {"command": "cancel", "id": name})

    async def close(self) -> None:
        """Ends the child, which gives all memory back."""
        async with self._starting:
            process, self._process = self._process, None
            if process is None:
                return
            if process.stdin is not None:
                process.stdin.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            if self._reader is not None:
                await asyncio.gather(self._reader, return_exceptions=True)

    async def _started(self) -> asyncio.subprocess.Process:
        async with self._starting:
            self._used_at = time.monotonic()
            if self._process is not None and self._process.returncode is None:
                return self._process
            await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
            config = self._folder / "serve.config.json"
            config.write_text(json.dumps(self._config()), encoding="utf-8")
            with _open_log(self._folder / "serve.log") as stderr:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "backend.trainers.serve",
                    str(config),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,
                    limit=_LINE_BYTES,
                    env=child_environment(),
                )
            log.info("the serving child starts (pid %d)", self._process.pid)
            self._reader = asyncio.create_task(self._read(self._process))
            return self._process

    def _config(self) -> dict[str, Any]:
        return {
            "memory_mb": self._settings.serving_memory_mb,
            "max_answers": self._settings.serving_concurrency,
            "device": self._settings.training_device,
            "threads": self._settings.training_threads,
        }

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Hands every event to who asked; whoever still waits when the child ends is told so."""
        assert process.stdout is not None
        last_error = ""
        with suppress(ValueError, ConnectionError):  # a line that is too long, a broken pipe: the child is beyond use
            async for line in process.stdout:
                event = json.loads(line)
                asked = self._asked.get(str(event.get("id")))
                if asked is not None:
                    asked[1].put_nowait(event)
                elif event["event"] in ("loaded", "evicted", "ready"):
                    log.info("serving child: %s", json.dumps(event))
                elif event["event"] == "error":
                    last_error = str(event.get("error"))
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        code = await process.wait()
        waiting = [events for asked, events in self._asked.values() if asked is process]
        if waiting:
            log.error("the serving child ended with %d in the middle of %d answers", code, len(waiting))
        for events in waiting:
            events.put_nowait({"event": CRASHED, "error": last_error, "exit_code": code})

    async def _send(self, process: asyncio.subprocess.Process, command: dict[str, Any]) -> None:
        with suppress(OSError, RuntimeError):  # it has just ended: the reader tells so
            _write(process, command)
            assert process.stdin is not None
            await process.stdin.drain()


def _write(process: asyncio.subprocess.Process, command: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(command).encode() + b"\n")


async def _next(events: "asyncio.Queue[Event]", seconds: float) -> Event | None:
    try:
        return await asyncio.wait_for(events.get(), seconds)
    except TimeoutError:
        return None


def _open_log(path: Path) -> BinaryIO:
    size = path.stat().st_size if path.exists() else 0
    return path.open("ab" if size < _LOG_BYTES else "wb")
