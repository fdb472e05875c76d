"""Child processes: a clean event stream, exit codes, death with the parent, cancel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainers.tiny import REPOSITORY, Child, ConfigMaker

NOISY = """
import os, sys
from backend.trainers.events import Events
from backend.trainers.process import take_stdout
events = Events(take_stdout())
print("a library prints")
sys.__stdout__.write("and writes") ; sys.__stdout__.flush()
os.write(1, b"and bypasses python")
os.system("echo and so does its child")
events.emit("log", train_loss=float("nan"), text="é\\n")
"""

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "backend.trainers.qlora", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_only_events_reach_stdout() -> None:
    done = subprocess.run([sys.executable, "-c", NOISY], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"event": "log", "train_loss": None, "text": "é\n"}
    ]
    for noise in ("a library prints", "and writes", "and bypasses python", "and so does its child"):
        assert noise in done.stderr


def test_a_bad_config_exits_3_after_one_error_event(start_child: Callable[..., Child]) -> None:
    child = start_child("qlora", {"learning_rate": 1})
    assert child.finish() == 3
    assert [item["event"] for item in child.events] == ["error"]
    assert child.events[0]["error_code"] == "INVALID_CONFIG"
    assert child.events[0]["status"] == "failed"
    assert "learning_rate" in child.events[0]["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_the_child_dies_with_its_parent(tmp_path: Path, train_config: ConfigMaker) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(train_config(tmp_path / "run", num_epochs=10_000)))
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(config)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        assert _alive(child_pid)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while _alive(child_pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _alive(child_pid)


def test_a_child_whose_parent_is_gone_already_ends_at_once(tmp_path: Path) -> None:
    code = "from backend.trainers.process import die_with_parent; die_with_parent(); print('alive')"
    environment = {**os.environ, "TRAINER_PARENT_PID": str(os.getpid() + 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (137, "")


def test_sigterm_saves_a_checkpoint_and_exits_within_seconds(
    tmp_path: Path, train_config: ConfigMaker, start_child: Callable[..., Child]
) -> None:
    from backend.trainers.checkpoints import newest_whole, step_of

    run_dir = tmp_path / "run"
    child = start_child("qlora", train_config(run_dir, num_epochs=10_000))
    child.read_until("log", 3)
    asked = time.monotonic()
    child.process.send_signal(signal.SIGTERM)
    assert child.finish() == 143
    assert time.monotonic() - asked < 10
    step = child.of("cancelled")[0]["step"]
    assert child.of("checkpoint")[-1] == {"event": "checkpoint", "step": step, "path": f"checkpoint-{step}"}
    assert not child.of("complete")
    assert not child.of("error")
    whole = newest_whole(run_dir)
    assert whole is not None
    assert step_of(whole) == step
    assert not (run_dir / "adapter").exists()


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
