"""Child processes: identity beyond the pid, groups, marks, the record, logs and ports."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backend.embedded import processes
from backend.embedded.processes import Identity, ProcessRecord
from tests.embedded.product import eventually, needs_linux

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
# Starts a second process in its group, prints that pid, and sleeps.
PAIR = [
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import subprocess, sys, time; second = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "print(second.pid, flush=True); time.sleep(600)",
]


def test_a_process_is_its_pid_and_its_start(tmp_path: Path) -> None:
    child = processes.spawn(SLEEP, log=tmp_path / "log", env=os.environ)
    identity = Identity.of(child.pid)
    assert identity and identity.alive()
    assert not Identity(child.pid, "another start").alive()
    os.kill(child.pid, signal.SIGKILL)
    eventually(lambda: processes.has_exited(child))
    assert not identity.alive()  # a zombie already counts as gone
    assert processes.describe_exit(processes.collect(child)) == "was killed by SIGKILL"


def test_collecting_a_child_ends_its_whole_group(tmp_path: Path) -> None:
    child = processes.spawn(PAIR, log=tmp_path / "log", env=os.environ)
    second = Identity.of(int(eventually(lambda: (tmp_path / "log").read_text().strip())))
    assert second and second.alive()
    os.kill(child.pid, signal.SIGKILL)
    eventually(lambda: processes.has_exited(child))
    processes.collect(child)
    eventually(lambda: not second.alive())


@needs_linux
def test_a_child_ends_with_the_thread_that_started_it(tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []
    release = threading.Event()

    def start() -> None:
        started.append(processes.spawn(SLEEP, log=tmp_path / "log", env=os.environ, orphan_signal=signal.SIGQUIT))
        release.wait()

    thread = threading.Thread(target=start)
    thread.start()
    [child] = eventually(lambda: started)
    eventually(lambda: "launcher" not in processes.command_line(child.pid))
    assert not processes.has_exited(child)
    release.set()
    thread.join()
    assert child.wait(5) == -signal.SIGQUIT


@needs_linux
def test_marked_descendants_are_killed_in_whatever_session_and_others_are_not(tmp_path: Path) -> None:
    marks = {"MARK_A": str(tmp_path), "MARK_B": "x"}
    own = subprocess.Popen(SLEEP, start_new_session=True, env={**os.environ, **marks})
    other = subprocess.Popen(SLEEP, start_new_session=True, env={**os.environ, **marks, "MARK_B": "y"})
    try:
        eventually(lambda: b"MARK_A" in Path("/proc", str(other.pid), "environ").read_bytes())
        assert processes.kill_marked(marks) == 1
        assert own.wait(5) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_the_record_ends_who_does_not_stop_politely_and_forgets(tmp_path: Path) -> None:
    deaf = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)",
    ]
    child = processes.spawn(deaf, log=tmp_path / "log", env=os.environ)
    eventually(lambda: (tmp_path / "log").read_text())
    record = ProcessRecord(tmp_path / "record.json")
    record.add("deaf", child.pid, signal.SIGTERM)
    assert record.path.stat().st_mode & 0o777 == 0o600
    assert ProcessRecord(record.path).reap(0.3) == ["deaf"]
    assert child.wait(5) == -signal.SIGKILL
    assert ProcessRecord(record.path).reap(0.3) == []


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_broken_record_stops_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    assert ProcessRecord(tmp_path / "record.json").reap(0.1) == []


def test_logs_are_private_and_rotated_at_a_start(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    for run in range(6):
        processes.rotate_log(log)
        processes.spawn([sys.executable, "-c", f"print({run})"], log=log, env=os.environ).wait()
    names = ("x.log", "x.log.1", "x.log.2", "x.log.3")
    assert [(tmp_path / name).read_text().strip() for name in names] == ["5", "4", "3", "2"]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert log.stat().st_mode & 0o777 == 0o600


def test_ports_are_below_those_of_outgoing_connections() -> None:
    port = processes.free_port()
    assert processes.port_is_free("127.0.0.1", port)
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if ephemeral.exists():
        assert port < max(32768, int(ephemeral.read_text().split()[0]))


def test_a_command_that_is_not_there_says_so_in_the_log(tmp_path: Path) -> None:
    if processes.LINUX:
        child = processes.spawn(["/nowhere/program"], log=tmp_path / "log", env=os.environ)
        assert child.wait(5) == 1
        assert "/nowhere/program does not start" in (tmp_path / "log").read_text()
