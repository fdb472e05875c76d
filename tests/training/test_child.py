"""Trainers as children: their events, their errors, and that none is left behind."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from backend.training import child
from backend.training.errors import TrainerFailed, TrainerKilled

# Stand-ins for a trainer: what is tested here is how the worker treats a child, whatever that child does.
GOOD = """
import json, sys
print(json.dumps({"event": "log", "step": 1}), flush=True)
print("not json", flush=True)
print(json.dumps({"no": "event"}), flush=True)
print(json.dumps({"event": "complete", "status": "success", "steps": 1}), flush=True)
"""
FAILS = """
import json, sys
print(json.dumps({"event": "error", "error_code": "OUT_OF_MEMORY", "error": "Use a smaller batch."}), flush=True)
sys.exit(3)
"""
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
STUBBORN = """
import json, os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(60)"])
print(json.dumps({"event": "pids", "pids": [os.getpid(), grandchild.pid]}), flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a script in the place of `python -m backend.trainers.<module>`; returns (result, events)."""
    events: list[dict[str, Any]] = []
    real = asyncio.create_subprocess_exec

    async def start(script: str, *, grace: float = 5.0) -> dict[str, Any]:
        path = tmp_path / "script.py"
        path.write_text(script)

        async def spawn(*command: str, **options: Any) -> asyncio.subprocess.Process:
            assert command[1:3] == ("-m", "backend.trainers.qlora")
            return await real(sys.executable, str(path), **options)

        monkeypatch.setattr(child.asyncio, "create_subprocess_exec", spawn)

        async def on_event(event: dict[str, Any]) -> None:
            events.append(event)

        return await child.run_trainer("qlora", {"a": 1}, tmp_path / "run", on_event, grace_seconds=grace)

    start.events = events  # type: ignore[attr-defined]
    return start


async def test_events_come_through_and_the_last_one_is_the_result(run: Any) -> None:
    result = await run(GOOD)
    assert result["steps"] == 1
    assert [event["event"] for event in run.events] == ["log", "complete"]


async def test_a_reported_error_keeps_the_trainers_words(run: Any) -> None:
    with pytest.raises(TrainerFailed, match="smaller batch") as caught:
        await run(FAILS)
    assert (caught.value.code, caught.value.retryable) == ("OUT_OF_MEMORY", False)


async def test_a_killed_trainer_is_tried_again(run: Any) -> None:
    with pytest.raises(TrainerKilled, match="memory") as caught:
        await run(DIES)
    assert caught.value.retryable


async def test_a_cancel_ends_the_whole_group_however_stubborn(run: Any) -> None:
    task = asyncio.ensure_future(run(STUBBORN, grace=0.5))
    while not run.events:
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in run.events[0]["pids"]:
        await _gone(pid)


async def _gone(pid: int) -> None:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        await asyncio.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail(f"process {pid} outlived its worker's cancel")
