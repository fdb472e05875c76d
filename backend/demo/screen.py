"""What the demo shows while it works: one line with a bar per step; plain lines where there is no terminal."""

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

_PLAIN_SECONDS = 10.0
_BAR_WIDTH = 14


class Step:
    """One step under way. As a context, it is done when the block ends, or has failed when the block raises."""

    def __init__(self, screen: "Screen", task: TaskID) -> None:
        self._screen = screen
        self._task = task
        self._percent = 0.0
        self._note = ""
        self._started_at = self._printed_at = time.monotonic()

    def show(self, percent: float | None = None, note: str | None = None) -> None:
        """How far it is, 0 to 100 (never backwards), and what it is doing."""
        if percent is not None:
            self._percent = max(self._percent, min(percent, 100.0))
        if note is not None:
            self._note = note
        self._screen.update(self._task, completed=self._percent, note=escape(self._note))
        if self._screen.plain and time.monotonic() - self._printed_at >= _PLAIN_SECONDS:
            self._printed_at = time.monotonic()
            self._screen.line(f"        {self._percent:3.0f} %  {self._note}")

    def finish(self) -> None:
        self._screen.update(self._task, completed=100.0, note=escape(self._note))
        self._screen.line_when_plain(f"        done in {time.monotonic() - self._started_at:.1f} s  {self._note}")

    def fail(self) -> None:
        self._screen.update(self._task, failed=True)
        self._screen.line_when_plain("        failed")

    def __enter__(self) -> "Step":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.fail()


class Screen:
    """The list of steps. Everything goes to `console`; use it as a context."""

    def __init__(self, console: Console, steps: int) -> None:
        self.console = console
        self.plain = not console.is_terminal
        self._steps = steps
        self._number = 0
        self._progress = _Bars(
            _Mark(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=22)),
            BarColumn(_BAR_WIDTH, style="bright_black", complete_style="cyan", finished_style="green"),
            _Seconds(table_column=Column(justify="right", no_wrap=True)),
            TextColumn("[dim]{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=console,
            expand=True,
            refresh_per_second=8,
        )

    def __enter__(self) -> "Screen":
        if not self.plain:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.plain:
            self._progress.stop()

    def step(self, title: str, note: str = "") -> Step:
        """Begin the next step."""
        self._number += 1
        task = self._progress.add_task(title, total=100.0, note=escape(note), failed=False)
        self.line_when_plain(f"[{self._number:2}/{self._steps}] {title}{': ' if note else ''}{note}")
        return Step(self, task)

    def update(self, task: TaskID, **values: Any) -> None:
        self._progress.update(task, **values)
        if values.get("failed"):
            self._progress.stop_task(task)

    def line_when_plain(self, text: str) -> None:
        if self.plain:
            self.line(text)

    def line(self, text: str) -> None:
        self.console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)


class _Bars(Progress):
    """Leaves room at the right for the ^C that a terminal echoes: a line that wraps would be drawn twice."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield Padding(self.make_tasks_table(self.tasks), (0, 3, 0, 0))


class _Mark(ProgressColumn):
    """A mark for done, failed and under way."""

    _FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

    def render(self, task: Task) -> Text:
        if task.fields["failed"]:
            return Text("✘", style="bold red")
        if task.finished:
            return Text("✔", style="bold green")
        return Text(self._FRAMES[int(time.monotonic() * 10) % len(self._FRAMES)], style="cyan")


class _Seconds(ProgressColumn):
    """Minutes and seconds that a step has taken."""

    def render(self, task: Task) -> Text:
        seconds = int((task.finished_time if task.finished else task.elapsed) or 0)
        return Text(f"{seconds // 60}:{seconds % 60:02d}", style="dim")
