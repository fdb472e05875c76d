"""The supervisor: growing delays for a child that keeps ending, and no harm to the others."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend.embedded.processes import ProcessRecord, free_port
from backend.embedded.services import Service, ServiceProcess
from backend.embedded.supervisor import Supervisor
from tests.embedded.product import eventually


@pytest.fixture
def lines() -> list[str]:
    """What the supervisor reported."""
    return []


@pytest.fixture
def supervisor(tmp_path: Path, lines: list[str]) -> Iterator[Supervisor]:
    supervisor = Supervisor(ProcessRecord(tmp_path / "record.json"), {"MARK": str(tmp_path)}, lines.append)
    yield supervisor
    supervisor.reap_orphans(0.1)


def child(folder: Path, name: str, code: str) -> ServiceProcess:
    service = Service(name, (sys.executable, "-I", "-S", "-c", code))
    return ServiceProcess(service, folder / f"{name}.log", {**os.environ, "MARK": str(folder)})


def checked(supervisor: Supervisor, lines: list[str], pattern: str) -> list[str]:
    """Let the supervisor work until a line matches; returns what the groups caught in all lines."""

    def look() -> list[str]:
        supervisor.check()
        return [found for line in lines for found in re.findall(pattern, line)]

    return eventually(look)


def test_delays_grow_for_who_keeps_ending_and_the_others_live_on(
    tmp_path: Path, supervisor: Supervisor, lines: list[str]
) -> None:
    steady, brief = (
        child(tmp_path, "steady", "import time; time.sleep(600)"),
        child(tmp_path, "brief", "raise SystemExit(3)"),
    )
    supervisor.launch(steady)
    supervisor.launch(brief)
    pid = supervisor.pids()["steady"]
    checked(supervisor, lines, "again in (0.8) s")
    delays = checked(supervisor, lines, r"brief .* exited with code 3; starting it again in (\S+) s")
    assert delays == ["0.1", "0.2", "0.4", "0.8"]
    assert supervisor.pids()["steady"] == pid
    supervisor.stop([brief, steady], lambda: False)
    assert supervisor.pids() == {}
    assert not any("steady" in line for line in lines)


def test_a_child_that_cannot_be_launched_is_tried_again_later(
    tmp_path: Path, supervisor: Supervisor, lines: list[str]
) -> None:
    one = child(tmp_path, "one", "import time; time.sleep(600)")
    supervisor.launch(one)
    os.kill(supervisor.pids()["one"], signal.SIGKILL)
    one.log = tmp_path / "not" / "there.log"
    checked(supervisor, lines, "(one cannot be started again)")
    assert supervisor.pids() == {}
    (tmp_path / "not").mkdir()
    supervisor._due_at[one] = time.monotonic()  # instead of half a minute
    checked(supervisor, lines, "(one runs again)")
    supervisor.stop([one], lambda: False)


def test_a_child_is_not_started_again_before_what_it_needs_is_ready(
    tmp_path: Path, supervisor: Supervisor, lines: list[str]
) -> None:
    server, one = [child(tmp_path, name, "import time; time.sleep(600)") for name in ("server", "one")]
    supervisor.launch(server)
    supervisor.launch(one, needs=[server])
    server.service = replace(server.service, health_url=f"http://127.0.0.1:{free_port()}/health")  # nobody answers
    os.kill(supervisor.pids()["one"], signal.SIGKILL)
    checked(supervisor, lines, "(one .* was killed)")
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        supervisor.check()
    assert "one" not in supervisor.pids()
    server.service = replace(server.service, health_url=None)
    checked(supervisor, lines, "(one runs again)")
    supervisor.stop([one, server], lambda: False)
