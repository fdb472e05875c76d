"""Limits that the child puts on itself before it opens a document: memory, CPU, files, processes and network."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from typing import Any

from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.parsers.system_calls import refuse_system_calls

_PR_SET_PDEATHSIG = 1
_OPEN_FILES = 32
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED_EVENTS = frozenset(
    {
        "subprocess.Popen",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.symlink",
        "os.chmod",
        "os.chown",
        "os.truncate",
        "os.kill",
        "os.killpg",
        "ctypes.dlopen",
        "shutil.rmtree",
    }
)


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel kill this process when its parent dies (Linux); exit if the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def limit_resources(limits: ExtractionLimits) -> None:
    """Hard limits of the kernel; those that a platform does not know are skipped, the parent's clock remains."""
    wanted: dict[str, int] = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_DATA": limits.memory_bytes,
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_FSIZE": limits.output_bytes,
        "RLIMIT_NOFILE": _OPEN_FILES,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (value, value))


def refuse_network_and_processes() -> None:
    """From now on Python code here opens no socket, starts no process and writes no file; it cannot be undone.

    Native code is bound by the kernel's filter, on the systems that have it; the hook says in Python what was refused.
    """
    refuse_system_calls()
    sys.addaudithook(_audit)


def start_step(limits: ExtractionLimits) -> None:
    """Give the next page or slice its own CPU time: past it the kernel ends this process with SIGPROF.

    The signal keeps its default action on purpose: a handler in Python would never run inside a native loop.
    """
    signal.setitimer(signal.ITIMER_PROF, limits.step_cpu_seconds)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in _REFUSED_EVENTS or event.startswith("socket."):
        raise PermissionError(f"A document parser may not use {event}")
    if event == "open":
        mode, flags = args[1], args[2]
        writes = (isinstance(mode, str) and any(letter in mode for letter in "wax+")) or (
            isinstance(flags, int) and bool(flags & _WRITE_FLAGS)
        )
        if writes:
            raise PermissionError("A document parser may not write files")
