"""A stack with stand-in services in a process of its own, and what its tests ask about processes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from backend.embedded import processes
from backend.embedded.data_folder import StackState, read_state

PRODUCT = Path(__file__).with_name("stand_in_product.py")
REPOSITORY = Path(__file__).parents[2]
T = TypeVar("T")


needs_linux = pytest.mark.skipif(not processes.LINUX, reason="reads /proc")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


class Product:
    """A stack with stand-in services in a process of its own."""

    def __init__(
        self, data_dir: Path, *, python: str = sys.executable, user: int | None = None, **options: object
    ) -> None:
        self.data_dir = data_dir
        self.output = Path(tempfile.mkstemp(prefix="ftf-output-")[1])
        packages = [str(REPOSITORY), *(path for path in sys.path if path.endswith("site-packages"))]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [python, str(PRODUCT), str(data_dir), json.dumps(options)],
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": os.pathsep.join(packages),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "COLUMNS": "200",
                },
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )

    def wait_up(self) -> StackState:
        """Wait until it serves. Fails with its output when it ends instead."""

        def up() -> StackState | None:
            assert self.process.poll() is None, self.text()
            state = read_state(self.data_dir)
            return state if state and {"api", "worker"} <= state.processes.keys() else None

        return eventually(up, 60)

    def end(self, seconds: float = 20) -> int:
        return self.process.wait(seconds)

    def text(self) -> str:
        return self.output.read_text()


def eventually(ask: Callable[[], T | None], seconds: float = 30) -> T:
    """The first true answer. Fails when none comes in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.02)
    pytest.fail(f"no answer from {ask} in {seconds} s")


def marked(folder: Path) -> list[int]:
    """Every process on this machine that descends from a stack on this folder."""
    mark = f"FINETUNEFLOW_STACK={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if processes.Identity.of(pid)]


def helpers(folder: Path) -> list[int]:
    """The helper processes, in sessions of their own, of the stand-in workers of a stack on this folder."""
    return [pid for pid in marked(folder) if "time.sleep" in processes.command_line(pid)]


def all_gone(folder: Path, pids: dict[str, int]) -> bool:
    """Whether none of these and no descendant is left. The servers hide their environment, so both ways are needed."""
    return marked(folder) == [] and all(processes.Identity.of(pid) is None for pid in pids.values())
