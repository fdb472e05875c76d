"""What every trainer does as a child process: a private event stream, death with its worker, cancel and exit codes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO, TypeVar

from backend.trainers.config import load_config
from backend.trainers.errors import INVALID_CONFIG, Cancelled, TrainerError, from_exception
from backend.trainers.events import Events

ConfigT = TypeVar("ConfigT")
EXIT_REPORTED = 3
# What a process says when it had no room: the launcher starts all anew with smaller parts.
EXIT_SMALLER = 4
ERROR, SMALLER = "error", "smaller"
PARENT_PID_VARIABLE = "TRAINER_PARENT_PID"
STORE_FD_VARIABLE = "TRAINER_STORE_FD"
_PR_SET_PDEATHSIG = 1


class Cancellation:
    """SIGTERM or SIGINT: raises Cancelled at once, or, inside `deferred()`, waits to be asked through `requested`.

    A second signal raises in any case. The launcher of several processes passes a signal on as SIGUSR1, which is no
    second one for those that the first has reached.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._deferred = False
        self._only_told = False

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)
        signal.signal(signal.SIGUSR1, self._hear)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this block the owner polls `requested` and stops at a point of its choice."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.requested and not self._only_told
        self.signal_number, self._only_told = number, False
        if again or not self._deferred:
            raise Cancelled

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.signal_number, self._only_told = signal.SIGTERM, True
        if not self._deferred:
            raise Cancelled


def run(
    config_type: type[ConfigT], job: Callable[[ConfigT, Events, Cancellation], None], *, one_gpu: bool = True
) -> int:
    """Run `job` with the config file named in argv, on one GPU unless it sees to that itself; returns the exit code.

    0 success, 3 after an `error` event, 128 + the signal's number after a cancel (143 for SIGTERM, 130 for SIGINT).
    """
    # Of several processes the first one tells how the run goes, and each why it failed.
    told = None if not is_launched() or os.environ["RANK"] == "0" else (ERROR, SMALLER)
    events = Events(take_stdout(), told)
    die_with_parent()
    prepare_environment()
    if one_gpu:
        show_one_gpu()
    cancellation = Cancellation()
    cancellation.install()
    try:
        if len(sys.argv) != 2:
            raise TrainerError(INVALID_CONFIG, f"Give the path of one JSON config file. Usage: {sys.argv[0]} CONFIG")
        config = load_config(config_type, Path(sys.argv[1]))
        job(config, events, cancellation)
    except Cancelled:
        return 128 + (cancellation.signal_number or signal.SIGTERM)
    except Exception as error:
        if not isinstance(error, TrainerError):
            traceback.print_exc()
        failure = from_exception(error)
        events.emit(ERROR, status="failed", error=str(failure), error_code=failure.code)
        return EXIT_REPORTED
    return 0


def is_launched() -> bool:
    """Whether this is one of the several processes of a run, by the variables that every launcher of torch sets."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def leave(code: int) -> NoReturn:
    """End at once: a process whose peers are gone would wait for them in the libraries' own farewells."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def take_stdout() -> TextIO:
    """Keep file descriptor 1 for events alone: from here on, whatever a library prints goes to stderr."""
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return wire


def die_with_parent() -> None:
    """On Linux the kernel kills this process when the thread that spawned it ends.

    The worker may have died before this call: with TRAINER_PARENT_PID set, that is noticed too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    expected = os.environ.get(PARENT_PID_VARIABLE)
    if expected and os.getppid() != int(expected):
        os._exit(128 + signal.SIGKILL)


def prepare_environment() -> None:
    """Settings that libraries read on import: no hub, no telemetry, no spinning threads."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def show_one_gpu() -> None:
    """Leave the first of the visible GPUs: TRL refuses several without a launcher."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
