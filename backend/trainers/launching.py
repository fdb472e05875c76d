"""Starts a run's processes, one for each GPU, and sees to their one end: one stream of events, one reason, no orphans.

What `accelerate launch` does, with two differences: the processes meet on loopback only, and one that dies takes the
others with it in seconds. Imports no torch: that is for the processes.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.trainers import process
from backend.trainers.config import TrainConfig
from backend.trainers.errors import TRAINING_FAILED, Cancelled, TrainerError
from backend.trainers.events import Events

_FAILURE_SECONDS = 2.0
_CANCEL_SECONDS = 60.0
_LAST_SECONDS = 10.0
_CANCELLED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def processes(config: TrainConfig) -> int:
    """How many processes the run gets: one for each visible GPU, or as many as the config asks for at most.

    No more than an optimizer step has examples. On a CPU one, unless the config asks for more.
    """
    if config.method == "dpo":
        return 1
    wanted = config.processes
    if config.device != "cpu" and wanted != 1 and (gpus := visible_gpus()):
        wanted = min(wanted or gpus, gpus)
    step = config.hyperparams.per_device_batch_size * config.hyperparams.gradient_accumulation_steps
    return max(1, min(wanted, step))


def why_one(config: TrainConfig) -> str | None:
    """Why a run does not use the several processes that it was given, where that is not its own wish."""
    if config.method != "dpo" or config.processes == 1:
        return None
    if config.processes > 1 or (config.device != "cpu" and visible_gpus() > 1):
        return "The method dpo trains in one process, on one GPU: the others stay idle in this run."
    return None


def visible_gpus() -> int:
    """As torch counts them, without a context on any of them: CUDA_VISIBLE_DEVICES can still change after this."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def launch(config: TrainConfig, config_path: Path, events: Events, cancel: process.Cancellation, size: int) -> None:
    """Train with `size` processes to the end; raises TrainerError or Cancelled as one process would.

    After an out-of-memory in one of them all are started anew, with the smaller parts that it asked for.
    """
    while True:
        with _started(size, config_path, on_cpu=config.device == "cpu") as gang, cancel.deferred():
            gang.follow(events, cancel)
        if gang.smaller is None or cancel.requested:
            gang.conclude(cancel)
            return
        from backend.trainers import memory

        memory.save_parts(config.run_dir, memory.Parts(**gang.smaller["parts"]))
        events.warning(gang.smaller["message"])


@dataclass
class _Gang:
    """The processes of one attempt, and what came of them."""

    members: list[subprocess.Popen[bytes]]
    smaller: dict[str, Any] | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    ended_by_us: set[int] = field(default_factory=set)

    def follow(self, events: Events, cancel: process.Cancellation) -> None:
        """Pass the first process's events on, keep the errors of all; returns when no process is left."""
        reading = selectors.DefaultSelector()
        for number, member in enumerate(self.members):
            assert member.stdout is not None
            reading.register(member.stdout, selectors.EVENT_READ, (number, bytearray()))
        told = False
        deadline: float | None = None
        while reading.get_map():
            for key, _ in reading.select(timeout=0.1):
                if not self._read(key.fd, *key.data, events=events):
                    reading.unregister(key.fileobj)
            if cancel.requested and not told:
                told = True
                for member in self.members:
                    member.send_signal(signal.SIGUSR1)
            patience = self._patience()
            if patience is None:
                continue
            deadline = min(deadline or float("inf"), time.monotonic() + patience)
            if time.monotonic() >= deadline:
                self.kill()
        for member in self.members:
            # Who has said its last word is about to end by itself, with a code of its own.
            with suppress(subprocess.TimeoutExpired):
                member.wait(_LAST_SECONDS)
        self.kill()

    def _read(self, descriptor: int, number: int, buffer: bytearray, *, events: Events) -> bool:
        data = os.read(descriptor, 65_536)
        buffer += data
        *lines, rest = buffer.split(b"\n")
        buffer[:] = rest
        for line in lines:
            self._take(number, json.loads(line), events)
        return bool(data)

    def _take(self, number: int, event: dict[str, Any], events: Events) -> None:
        if event["event"] == process.ERROR:
            self.errors.append(event)
        elif event["event"] == process.SMALLER:
            self.smaller = self.smaller or event
        elif number == 0:
            events.emit(**event)

    def _patience(self) -> float | None:
        """For how long the others may still go on; None while nothing speaks against it."""
        codes = [member.poll() for member in self.members]
        if codes[0] == 0 or any(code and code not in _CANCELLED for code in codes):
            return _FAILURE_SECONDS
        # The first one may still write its checkpoint.
        return _CANCEL_SECONDS if any(code in _CANCELLED for code in codes) else None

    def kill(self) -> None:
        """SIGKILL, because one that waits for the dead in a collective hears no other signal."""
        for number, member in enumerate(self.members):
            if member.poll() is None:
                self.ended_by_us.add(number)
                with suppress(ProcessLookupError):
                    member.kill()
            member.wait()

    def conclude(self, cancel: process.Cancellation) -> None:
        """Return after a success; otherwise raise what the run ended with."""
        codes = [member.wait() for member in self.members]
        if codes[0] == 0:
            return
        if cancel.requested:
            raise Cancelled
        for number, code in enumerate(codes):
            if code < 0 and number not in self.ended_by_us:
                # As if this process itself had been killed: the next attempt resumes.
                raise SystemExit(128 - code)
        if self.errors:
            # Who loses a peer fails too, after it and in general terms.
            first = min(self.errors, key=lambda error: error["error_code"] == TRAINING_FAILED)
            raise TrainerError(first["error_code"], first["error"])
        if any(code in _CANCELLED for code in codes):
            raise Cancelled
        raise SystemExit(max(codes))


@contextmanager
def _started(size: int, config_path: Path, *, on_cpu: bool) -> Iterator[_Gang]:
    """The processes, in the launcher's own process group, which a signal reaches as one; none outlives this."""
    with socket.create_server(("127.0.0.1", 0)) as meeting:
        gang = _Gang([])
        try:
            for rank in range(size):
                gang.members.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "backend.trainers.qlora", str(config_path)],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        env=_environment(rank, size, meeting, on_cpu=on_cpu),
                        pass_fds=[meeting.fileno()] if rank == 0 else [],
                    )
                )
            meeting.close()
            yield gang
        finally:
            gang.kill()
            for member in gang.members:
                assert member.stdout is not None
                member.stdout.close()


def _environment(rank: int, size: int, meeting: socket.socket, *, on_cpu: bool) -> dict[str, str]:
    """The variables of `accelerate launch`, and those that keep all talk on loopback."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(meeting.getsockname()[1]),
        "GLOO_SOCKET_IFNAME": _LOOPBACK,
        "NCCL_SOCKET_IFNAME": _LOOPBACK,
        process.STORE_FD_VARIABLE: str(meeting.fileno()),
        process.PARENT_PID_VARIABLE: str(os.getpid()),
        **({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}),
    }
