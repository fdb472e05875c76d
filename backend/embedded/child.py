"""One supervised process: how it is prepared, launched, found ready and ended."""

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from backend.embedded import processes

# Signals in the order they are tried, each with the seconds it is given; SIGKILL to the whole group comes after.
StopSteps = Sequence[tuple[signal.Signals, float]]
MARK = "FINETUNEFLOW_SERVICE"


class ChildFailed(RuntimeError):
    """A child ended, or did not become ready, while it was being started; the message ends with its last log lines."""


class Child(ABC):
    """Subclasses say how to launch and when ready; a supervisor, or `start` and `stop`, do the rest."""

    stop_steps: StopSteps = ((signal.SIGTERM, 5.0),)

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.launches = 0

    @abstractmethod
    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process and return at once."""

    def ready(self) -> bool:
        """Whether it serves; asked often, so it must answer within milliseconds."""
        return True

    def prepare(self) -> None:  # noqa: B027 - most children need nothing
        """Make what has to be there before a launch."""

    def retry_elsewhere(self) -> None:  # noqa: B027 - the port of most children is given
        """Called when a launch failed before the child was ever ready: its port may have been taken meanwhile."""

    def launch(self) -> None:
        self.launches += 1
        self.process = self.spawn()

    @property
    def mark(self) -> dict[str, str]:
        """Environment by which everything that descends from this launch can be found."""
        return {MARK: f"{self.name}#{self.launches}"}

    def running(self) -> bool:
        return self.process is not None and not processes.has_exited(self.process)

    def collect(self) -> int:
        """Reap the process that has ended, with what is left of its group; returns its exit code."""
        assert self.process is not None
        code = processes.collect(self.process)
        self.process = None
        return code

    def start(self, timeout_seconds: float = 30.0) -> None:
        """Prepare, launch and wait until ready; a process of before is ended first. Raises ChildFailed."""
        self.stop()
        processes.rotate_log(self.log)
        self.prepare()
        self.launch()
        try:
            wait_ready([self], timeout_seconds)
        except BaseException:
            end_all([self], hurry=lambda: True)
            raise

    def stop(self) -> None:
        """End it: politely first, by force in the end."""
        end_all([self])


def wait_ready(
    children: Sequence[Child],
    timeout_seconds: float,
    *,
    attempts: int = 5,
    proceed: Callable[[], None] = lambda: None,
    on_launch: Callable[[Child], None] = lambda child: None,
) -> None:
    """Wait until all are ready, launching again those that end first. Raises ChildFailed when time or patience is out.

    `proceed` is called at every turn and may raise to give up.
    """
    deadline = time.monotonic() + timeout_seconds
    waiting = list(children)
    failures: dict[str, int] = {}
    while waiting:
        proceed()
        child = waiting[0]
        if child.running():
            if child.ready():
                waiting.pop(0)
                continue
            if time.monotonic() > deadline:
                raise ChildFailed(_failure(child, f"is not ready after {timeout_seconds:.0f} s"))
            time.sleep(processes.POLL_SECONDS)
            continue
        code = child.collect()
        failures[child.name] = failures.get(child.name, 0) + 1
        if time.monotonic() > deadline or failures[child.name] >= attempts:
            raise ChildFailed(_failure(child, processes.describe_exit(code)))
        time.sleep(0.2 * failures[child.name])
        child.retry_elsewhere()
        child.launch()
        on_launch(child)


def end_all(children: Sequence[Child], *, hurry: Callable[[], bool] = lambda: False) -> None:
    """End children side by side, each along its stop steps; `hurry` turning true ends them by force at once."""
    steps = {child: list(child.stop_steps) for child in children if child.process is not None}
    deadlines = dict.fromkeys(steps, 0.0)
    while steps:
        forced = hurry()
        for child in list(steps):
            assert child.process is not None
            if not child.running():
                child.collect()
                del steps[child]
            elif forced or time.monotonic() >= deadlines[child]:
                if steps[child] and not forced:
                    signal_, seconds = steps[child].pop(0)
                    processes.send(child.process, signal_)
                    deadlines[child] = time.monotonic() + seconds
                else:
                    child.collect()  # SIGKILL to the group
                    del steps[child]
        if steps:
            time.sleep(processes.POLL_SECONDS)


def _failure(child: Child, what: str) -> str:
    log = processes.tail(child.log)
    return f"{child.name} {what}. Its log {child.log} ends with:\n{log}" if log else f"{child.name} {what}."
