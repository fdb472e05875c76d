"""Watches children and starts again those that end, sooner at first and later when they keep ending."""

import time
from collections.abc import Callable, Mapping, Sequence

from backend.embedded import processes
from backend.embedded.child import Child, end_all, wait_ready
from backend.embedded.processes import ProcessRecord

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 30.0
# A child that lived this long had settled: its next end counts as its first.
SETTLED_SECONDS = 60.0


class Supervisor:
    """All methods belong to one thread, which must live as long as the children (the kernel ends them with it).

    `marks` are environment variables that every child of this supervisor carries, and nothing else does.
    """

    def __init__(
        self,
        record: ProcessRecord,
        marks: Mapping[str, str],
        report: Callable[[str], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._record = record
        self._marks = dict(marks)
        self._report = report
        self._on_change = on_change
        self._children: list[Child] = []
        self._needs: dict[Child, Sequence[Child]] = {}
        self._launched_at: dict[Child, float] = {}
        self._failures: dict[Child, int] = {}
        self._due_at: dict[Child, float] = {}

    def reap_orphans(self, grace_seconds: float = 5.0) -> None:
        """End what an earlier supervisor with the same marks left behind."""
        names = self._record.reap(grace_seconds)
        strays = processes.kill_marked(self._marks)
        if names or strays:
            what = ", ".join(names) or f"{strays} processes"
            self._report(f"ended what an earlier start had left running: {what}")

    def launch(self, child: Child, needs: Sequence[Child] = ()) -> None:
        """Start a child and watch it from now on; it is started again only while those that it needs are ready."""
        self._needs[child] = needs
        child.launch()
        if child not in self._children:
            self._children.append(child)
        self._note_launch(child)

    def wait_ready(
        self, children: Sequence[Child], timeout_seconds: float, attempts: int, proceed: Callable[[], None]
    ) -> None:
        """Wait until all serve. Raises ChildFailed, and whatever `proceed` raises."""
        wait_ready(children, timeout_seconds, attempts=attempts, proceed=proceed, on_launch=self._note_launch)

    def check(self) -> None:
        """One round: collect the children that ended, start those whose time has come."""
        for child in self._children:
            if child.process is None:
                if time.monotonic() >= self._due_at[child] and all(other.ready() for other in self._needs[child]):
                    self._relaunch(child)
            elif not child.running():
                self._collect(child)

    def stop(self, children: Sequence[Child], hurry: Callable[[], bool]) -> None:
        """End these side by side, with everything that descends from them."""
        for child in children:
            if child in self._children:
                self._children.remove(child)
        end_all(children, hurry=hurry)
        for child in children:
            self._sweep(child)
            self._record.remove(child.name)

    def pids(self) -> dict[str, int]:
        # Asked by other threads too: each process is looked at once, it may be gone at the second look.
        return {child.name: process.pid for child in list(self._children) if (process := child.process) is not None}

    def _collect(self, child: Child) -> None:
        assert child.process is not None
        pid = child.process.pid
        reason = processes.describe_exit(child.collect())
        self._sweep(child)
        settled = time.monotonic() - self._launched_at[child] > SETTLED_SECONDS
        self._failures[child] = 1 if settled else self._failures.get(child, 0) + 1
        doublings = min(self._failures[child] - 1, 10)  # enough for the longest delay; more would overflow some day
        delay = min(FIRST_DELAY_SECONDS * 2**doublings, LONGEST_DELAY_SECONDS)
        self._due_at[child] = time.monotonic() + delay
        self._report(f"{child.name} (pid {pid}) {reason}; starting it again in {delay:.1f} s, its log is {child.log}")

    def _relaunch(self, child: Child) -> None:
        try:
            child.prepare()
            child.launch()
        except Exception as error:  # whatever it is, the other children go on, and this one gets its next try
            self._failures[child] += 1
            self._due_at[child] = time.monotonic() + LONGEST_DELAY_SECONDS
            self._report(f"{child.name} cannot be started again: {error}. Next try in {LONGEST_DELAY_SECONDS:.0f} s")
            return
        self._note_launch(child)
        assert child.process is not None
        self._report(f"{child.name} runs again (pid {child.process.pid})")

    def _note_launch(self, child: Child) -> None:
        assert child.process is not None
        self._launched_at[child] = time.monotonic()
        try:
            self._record.add(child.name, child.process.pid, child.stop_steps[0][0])
            self._on_change()
        except OSError as error:  # a full disk must not end what runs
            self._report(f"cannot write down what runs: {error}. Free some space in the data folder")

    def _sweep(self, child: Child) -> None:
        """Descendants in sessions of their own, such as a training: a second one must not start beside the first."""
        processes.kill_marked({**self._marks, **child.mark})
