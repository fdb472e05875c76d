"""Runs a trainer as a child process in a session of its own: events in, cancel out, and nobody left behind."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from backend.kit import child_process
from backend.training.errors import RunFolderBusy, TrainerFailed, TrainerKilled

log = logging.getLogger(__name__)

OnEvent = Callable[[dict[str, Any]], Awaitable[None]]

_BUSY = "RUN_FOLDER_BUSY"
_LINE_BYTES = 1024 * 1024
_STDERR_TAIL = 2000


async def run_trainer(
    module: str, config: dict[str, Any], folder: Path, on_event: OnEvent, *, grace_seconds: float
) -> dict[str, Any]:
    """Runs `python -m backend.trainers.<module>` to its end; returns its `complete` event.

    A cancel of this call sends SIGTERM, then after the grace SIGKILL, to the child's whole process group.
    Raises TrainerFailed with the trainer's own words, or TrainerKilled when it ended without any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config_path = folder / f"{module}.config.json"
    config_path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    with (folder / f"{module}.log").open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"backend.trainers.{module}",
            str(config_path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            limit=_LINE_BYTES,
            env=child_environment(),
        )
    try:
        last = await _follow(process, on_event)
        exit_code = await process.wait()
    finally:
        await child_process.end(process, grace_seconds)
    if exit_code == 0:
        return last.get("complete", {})
    if "error" in last:
        error = last["error"]
        code, sentence = error.get("error_code", "TRAINING_FAILED"), error.get("error", "Training failed.")
        if code == _BUSY:
            raise RunFolderBusy()
        raise TrainerFailed(str(code), str(sentence))
    log.error("trainer %s ended with %d: %s", module, exit_code, _tail(folder / f"{module}.log"))
    raise TrainerKilled(exit_code=exit_code)


def child_environment() -> dict[str, str]:
    """What a trainer sees. It ends itself when TRAINER_PARENT_PID is no longer its parent."""
    own = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "TRAINER_PARENT_PID": str(os.getpid())}
    return {**os.environ, **own}


async def _follow(process: asyncio.subprocess.Process, on_event: OnEvent) -> dict[str, dict[str, Any]]:
    """Hands each event on as it comes; returns the last one of each name."""
    assert process.stdout is not None
    last: dict[str, dict[str, Any]] = {}
    async for line in process.stdout:
        try:
            event = json.loads(line)
            name = event["event"]
        except (ValueError, KeyError, TypeError):
            log.warning("trainer wrote a line that is no event: %r", line[:200])
            continue
        last[name] = event
        await on_event(event)
    return last


def _tail(path: Path) -> str:
    data = path.read_bytes()
    return data[-_STDERR_TAIL:].decode("utf-8", "replace")
