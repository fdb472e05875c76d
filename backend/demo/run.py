"""Runs the demo on a stack of its own, or on the one that already runs on the data folder."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from backend.demo.budget import Budget
from backend.demo.client import Service
from backend.demo.errors import DemoFailed
from backend.demo.flow import STEPS, Flow, Outcome
from backend.demo.results import json_line, show_results
from backend.demo.screen import Screen
from backend.embedded.data_folder import read_state
from backend.embedded.foreground import NOT_STARTED
from backend.embedded.stack import StackOptions, running

SAMPLE = Path(__file__).parents[2] / "examples" / "quillon-40.pdf"
# A whole document at no cost: the demo's own service sells nothing.
_FREE = {"FREE_CHARACTERS": "1000000000"}
STOPPED = 130  # what a shell expects of a program that Ctrl-C ended


def run_demo(file: Path | None, options: StackOptions, budget: Budget | None = None) -> int:
    """Turn a document (by default the sample) into a fine-tuned model, over HTTP, as a new user of the service.

    Progress goes to standard error; the results, and as the last line the JSON, to standard output.
    Exit codes: 0 done, 1 not possible (the reason is printed), 130 stopped by Ctrl-C.
    """
    started = time.monotonic()
    console = Console(stderr=True)
    try:
        with _interruptible():
            document = readable(file or SAMPLE)
            outcome, embedded = _demonstrate(document, options, budget or Budget(), console)
    except KeyboardInterrupt:
        console.print("[dim]stopped[/dim]")
        return STOPPED
    except (DemoFailed, *NOT_STARTED) as error:
        sentence = str(error).rstrip()
        console.print(f"[bold red]The demo ended:[/] {escape(sentence)}", highlight=False, soft_wrap=True)
        return 1
    show_results(Console(), outcome, embedded_model=embedded)
    sys.stdout.write(json_line(outcome, time.monotonic() - started) + "\n")
    sys.stdout.flush()
    return 0


def readable(file: Path) -> Path:
    """The absolute path of a document that can be opened. Raises DemoFailed."""
    path = file.expanduser().absolute()
    if not path.exists():
        raise DemoFailed(f"there is no file {path}. Give the path of a PDF, DOCX, TXT or MD file.")
    if not path.is_file():
        raise DemoFailed(f"{path} is not a file. Give the path of one PDF, DOCX, TXT or MD file.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise DemoFailed(f"{path} cannot be read ({error.strerror}).") from error
    return path


def own_folder(options: StackOptions) -> StackOptions:
    """A demo beside the default data folder, with servers of its own: the user's database is not touched.

    A data folder that was chosen is used as it is, with the servers that the settings name.
    """
    if options.data_dir != StackOptions.data_dir:
        return options
    folder = options.data_dir.with_name(f"{options.data_dir.name}-demo")
    return replace(options, data_dir=folder, database_url=None, redis_url=None, storage_url=None)


def _demonstrate(document: Path, options: StackOptions, budget: Budget, console: Console) -> tuple[Outcome, bool]:
    """The outcome, and whether the embedded model wrote the dataset."""
    with Screen(console, STEPS) as screen:
        found = read_state(options.data_dir)
        if found is not None:
            with screen.step("Find the running stack") as step:
                step.show(note=found.api_url)
            embedded = found.processes.get("llm") is not None
            return _flow(found.api_url, Path(found.data_dir), document, budget, screen), embedded
        options = replace(own_folder(options), port=0, report=screen.line, env={**options.env, **_FREE})
        with ExitStack() as context:
            with screen.step("Start the stack", "PostgreSQL, Valkey, API, workers, language model") as step:
                stack = context.enter_context(running(options))
                step.show(note=stack.api_url)
            return _flow(stack.api_url, stack.folder.path, document, budget, screen), not options.llm_base_url


def _flow(api_url: str, folder: Path, document: Path, budget: Budget, screen: Screen) -> Outcome:
    downloads = folder / "demo"
    downloads.mkdir(mode=0o700, exist_ok=True)
    service = Service(api_url)
    try:
        return Flow(service, screen, budget, document, downloads).run()
    except KeyboardInterrupt:
        screen.line("stopping: cancelling the running job")
        service.cancel_running()
        raise
    finally:
        service.close()


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
