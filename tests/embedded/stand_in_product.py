"""The embedded stack with stand-in services as a program: to be signalled, killed, and run as another user."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

from backend.embedded import services
from backend.embedded.foreground import run_up
from backend.embedded.services import Service
from backend.embedded.stack import EmbeddedStack, StackOptions

SERVICE = str(Path(__file__).with_name("stand_in_service.py"))


def stand_ins(stack: EmbeddedStack) -> list[Service]:
    """An API, and a worker with a helper process."""
    return [
        Service(
            "api",
            (sys.executable, "-I", "-S", SERVICE, "api", str(stack.port)),
            health_url=f"{stack.api_url}/health",
            awaited=True,
        ),
        Service("worker", (sys.executable, "-I", "-S", SERVICE, "worker"), orphan_signal=signal.SIGQUIT),
    ]


def with_stubborn(stack: EmbeddedStack) -> list[Service]:
    """The same, and a service that ignores every polite signal."""
    stubborn = (sys.executable, "-I", "-S", SERVICE, "stubborn")
    return [*stand_ins(stack), Service("stubborn", stubborn, stop_steps=((signal.SIGTERM, 30.0),))]


def with_celery(stack: EmbeddedStack) -> list[Service]:
    """The stand-in API, and the product's own way to run a worker, with a task that takes long."""
    worker = services.worker("default", 2)
    command = tuple("tests.embedded.stand_in_tasks" if word == "celery_app.app" else word for word in worker.command)
    return [stand_ins(stack)[0], replace(worker, name="worker", command=command)]


def main() -> int:
    """Arguments: data folder, then StackOptions as JSON; "with" names services other than the usual stand-ins."""
    options = json.loads(sys.argv[2])
    make = {"stubborn": with_stubborn, "celery": with_celery}.get(options.pop("with", ""), stand_ins)
    return run_up(StackOptions(data_dir=Path(sys.argv[1]), services=make, **{"port": 0, **options}))


if __name__ == "__main__":
    sys.exit(main())
