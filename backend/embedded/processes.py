"""Starts, identifies, ends and remembers child processes: none outlives its supervisor, and no stranger is hit."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LINUX = sys.platform == "linux"
LAUNCHER = Path(__file__).with_name("launcher.py")
POLL_SECONDS = 0.02
LOGS_KEPT = 3
# Below the range from which Linux and macOS take the ports of outgoing connections: there, a client that keeps trying
# to reconnect to a dead server's port can be given that very port, connect to itself and block the server's return.
FIRST_PORT, LAST_PORT = 20_000, 32_767


@dataclass(frozen=True)
class Owner:
    """A user to run a child as."""

    name: str
    user_id: int
    group_id: int


@dataclass(frozen=True)
class Identity:
    """A process for all time: pids come back, a pid with its start time does not."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """The process that has this pid now; None when there is none or only its zombie."""
        started = _started_linux(pid) if LINUX else _started_ps(pid)
        return cls(pid, started) if started else None

    def alive(self) -> bool:
        return Identity.of(self.pid) == self


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
    run_as: Owner | None = None,
    orphan_signal: signal.Signals = signal.SIGTERM,
    stdin: bytes = b"",
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, its output appended to `log`, `stdin` (under 64 KB) written to its input.

    On Linux the child gets `orphan_signal` when the calling THREAD ends: call from one that lives as long as the child.
    """
    words = [str(word) for word in command]
    identity: dict[str, object] = {}
    if LINUX:
        user = [str(run_as.user_id), str(run_as.group_id)] if run_as else ["", ""]
        tie = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), str(int(orphan_signal)), *user]
        words = tie + words
    elif run_as:
        identity = {"user": run_as.user_id, "group": run_as.group_id, "extra_groups": []}
    with open(log, "ab", opener=_private) as output:
        process = subprocess.Popen(  # type: ignore[call-overload]
            words,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            umask=0o077,
            start_new_session=True,
            pass_fds=pass_fds,
            **identity,
        )
    if stdin:
        try:
            process.stdin.write(stdin)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it is dead already; its exit code and its log tell why
    started: subprocess.Popen[bytes] = process
    return started


def has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether the child ended. Leaves its zombie: neither its pid nor its group can be reused before `collect`."""
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def command_line(pid: int) -> str:
    """The words of a process's command, joined by spaces; empty when there is no such process."""
    if LINUX:
        try:
            words = Path("/proc", str(pid), "cmdline").read_bytes()
        except OSError:
            return ""
        return words.replace(b"\0", b" ").decode(errors="surrogateescape")
    answer = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return answer.stdout


def send(process: subprocess.Popen[bytes], signal_: signal.Signals) -> None:
    """Signal the child alone, unless it has ended."""
    if not has_exited(process):
        os.kill(process.pid, signal_)


def collect(process: subprocess.Popen[bytes]) -> int:
    """Kill what is left of the child and of its process group, and return the exit code (minus the signal's number)."""
    if process.returncode is None:
        _kill_group(process.pid)
    return process.wait()


def describe_exit(code: int) -> str:
    """'exited with code 1', 'was killed by SIGKILL'."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def kill_marked(marks: Mapping[str, str]) -> int:
    """Kill every process whose environment carries all these marks, whatever session it made for itself; count them.

    Linux only (elsewhere another process's environment cannot be read, and 0 is returned).
    """
    if not LINUX:
        return 0
    wanted = {f"{name}={value}".encode() for name, value in marks.items()}
    killed = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        identity = Identity.of(int(entry))
        try:
            environment = Path("/proc", entry, "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if identity and wanted.issubset(environment) and identity.alive():
            killed += _kill(identity.pid, signal.SIGKILL)
    return killed


class ProcessRecord:
    """The children that run, in a file, for the start that follows a SIGKILL of the supervisor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, dict[str, int | str]] = {}

    def add(self, name: str, pid: int, stop_signal: signal.Signals) -> None:
        identity = Identity.of(pid)
        if identity is None:
            return
        self._entries[name] = {"pid": pid, "started": identity.started, "signal": int(stop_signal)}
        self._write()

    def remove(self, name: str) -> None:
        if self._entries.pop(name, None) is not None:
            self._write()

    def reap(self, grace_seconds: float) -> list[str]:
        """End what an earlier supervisor left running, politely first, then with their groups. Returns the names."""
        orphans: dict[str, tuple[Identity, int]] = {}
        for name, entry in self._read().items():
            identity = Identity(int(entry["pid"]), str(entry["started"]))
            if identity.alive():
                orphans[name] = (identity, int(entry["signal"]))
        for identity, stop_signal in orphans.values():
            _kill(identity.pid, stop_signal)
        deadline = time.monotonic() + grace_seconds
        while time.monotonic() < deadline and any(identity.alive() for identity, _ in orphans.values()):
            time.sleep(POLL_SECONDS)
        for identity, _ in orphans.values():
            if identity.alive():
                _kill_group(identity.pid)
        self._entries = {}
        self.path.unlink(missing_ok=True)
        return sorted(orphans)

    def _read(self) -> dict[str, dict[str, int | str]]:
        try:
            entries = json.loads(self.path.read_text())
            return entries if isinstance(entries, dict) else {}
        except (FileNotFoundError, ValueError):
            return {}

    def _write(self) -> None:
        with contextlib.suppress(
            FileNotFoundError
        ):  # a data folder deleted under us must not keep us from ending children
            write_private(self.path, json.dumps(self._entries, indent=1))


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on. Raises OSError when 200 tries find none."""
    for _ in range(200):
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT + 1)
        if port_is_free(host, port):
            return port
    raise OSError(f"no free port between {FIRST_PORT} and {LAST_PORT} on {host}")


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    return listen_error(host, port) is None


def listen_error(host: str, port: int) -> OSError | None:
    """Why a server could not listen there now; None when it could."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
        return None


def rotate_log(log: Path) -> None:
    """Keep the last runs' logs as name.log.1 (the latest) to name.log.3."""
    if not log.exists() or not log.stat().st_size:
        return
    for number in range(LOGS_KEPT, 0, -1):
        older = log if number == 1 else log.with_name(f"{log.name}.{number - 1}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number}"))


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    try:
        text = log.read_bytes()[-8192:].decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    aside.unlink(missing_ok=True)
    with open(aside, "w", opener=_private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _kill(pid: int, signal_: int) -> bool:
    try:
        os.kill(pid, signal_)
    except ProcessLookupError:
        return False
    return True


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing left, or (macOS) only zombies
        os.killpg(leader, signal.SIGKILL)


def _started_linux(pid: int) -> str | None:
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{_boot()}:{start_ticks}"


def _started_ps(pid: int) -> str | None:
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
