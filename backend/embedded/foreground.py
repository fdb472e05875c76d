"""Runs the stack in the foreground until a signal: what `finetuneflow up` does."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backend.embedded.child import ChildFailed
from backend.embedded.data_folder import DataFolderUnusable, StackAlreadyRunning
from backend.embedded.place import PlaceUnusable
from backend.embedded.postgres import PostgresError
from backend.embedded.stack import AddressUnusable, EmbeddedStack, StackOptions, StackStopped
from backend.embedded.valkey import ValkeyUnusable

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What a user can act on: told in a sentence, without a traceback.
NOT_STARTED = (
    StackAlreadyRunning,
    DataFolderUnusable,
    PlaceUnusable,
    AddressUnusable,
    ChildFailed,
    PostgresError,
    ValkeyUnusable,
)


def run_up(options: StackOptions, console: Console | None = None) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP; a second signal ends everything by force. Call it from the main thread.

    Exit codes: 0 stopped on request, 1 not started or broken down (the reason is printed).
    """
    console = console or Console(stderr=True)

    def report(line: str) -> None:
        console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {escape(line)}", highlight=False, soft_wrap=True)

    stack = EmbeddedStack(replace(options, report=report))
    with _stopping(stack) as asked:
        try:
            stack.start()
        except StackStopped:
            return 0
        except NOT_STARTED as error:
            console.print(
                f"[bold red]FineTuneFlow did not start:[/] {escape(str(error))}", highlight=False, soft_wrap=True
            )
            return 1
        console.print(_summary(stack))
        told = False
        while not stack.wait(0.2):
            if asked.is_set() and not told:
                told = True
                console.print("\n[dim]stopping (once more: at once)[/dim]")
    if stack.failed:
        return 1
    console.print("[dim]stopped; everything is kept in the data folder[/dim]")
    return 0


@contextmanager
def _stopping(stack: EmbeddedStack) -> Iterator[Event]:
    """Signals ask the stack to stop while the block runs; the event says that one came.

    The handler prints nothing: it may run in the middle of a print, which does not bear another one within.
    """
    asked = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stack.request_stop(hurry=asked.is_set())
        asked.set()

    previous = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _summary(stack: EmbeddedStack) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold green]FineTuneFlow[/]", f"[bold link={stack.api_url}]{stack.api_url}[/]")
    table.add_row("API docs", f"{stack.api_url}/docs")
    table.add_row("data", escape(str(stack.folder.path)))
    if stack.postgres and not stack.postgres.place.folder.is_relative_to(stack.folder.path):
        table.add_row("database", escape(str(stack.postgres.place.folder)))
    table.add_row("logs", escape(str(stack.folder.path / "logs")))
    table.add_row("stop", "Ctrl-C")
    return table
