"""The product's services as data: what runs besides the servers, with which command, in which order."""

import http.client
import importlib.util
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from backend.embedded import processes
from backend.embedded.child import Child, StopSteps

# Celery: SIGTERM lets running tasks end, SIGQUIT cancels them. Jobs that are cut off are taken up again by their lease.
WORKER_STOP: StopSteps = ((signal.SIGTERM, 4.0), (signal.SIGQUIT, 2.0))
SERVING_STOP: StopSteps = ((signal.SIGTERM, 6.0),)
API_STOP: StopSteps = ((signal.SIGTERM, 4.0),)
QUEUES = {"default": 2, "llm": 2, "gpu": 1}


# Open event streams must not hold up a stop.
UVICORN_OPTIONS = (
    *("--log-level", "warning", "--no-access-log", "--loop", "uvloop", "--http", "httptools"),
    *("--timeout-graceful-shutdown", "2"),
)
WORKER_OPTIONS = ("--without-gossip", "--without-mingle", "--disable-prefetch")


@dataclass(frozen=True)
class Service:
    """One process of the product. Services start in the order of their list."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    # Answers 200 when the service is ready; services without one are ready when launched.
    health_url: str | None = None
    # Whether the start waits for it before it goes on with the next service, and fails without it.
    awaited: bool = False
    stop_steps: StopSteps = ((signal.SIGTERM, 4.0),)
    orphan_signal: signal.Signals = signal.SIGTERM


def product_services(
    data_dir: Path, host: str, port: int, llm_port: int | None, queues: Mapping[str, int] = QUEUES
) -> list[Service]:
    """The API, the embedded LLM unless `llm_port` is None, a worker per queue (name: processes), control, beat.

    And serving, where torch is.
    """
    services = [api(host, port)]
    if llm_port is not None:
        services.append(llm(llm_port))
    services += [worker(name, concurrency) for name, concurrency in queues.items()]
    if importlib.util.find_spec("torch") is not None:
        services.append(serving())
    # What beat schedules has a queue and a process of its own: no long task delays it.
    return [*services, worker("control", None), beat(data_dir)]


def api(host: str, port: int) -> Service:
    return Service(
        "api",
        (sys.executable, "-m", "uvicorn", "backend.main:app", "--host", host, "--port", str(port), *UVICORN_OPTIONS),
        health_url=f"http://{reachable(host)}:{port}/health",
        awaited=True,
        stop_steps=API_STOP,
    )


def llm(port: int) -> Service:
    return Service(
        "llm",
        (sys.executable, "-m", "backend.embedded.llm", "--port", str(port)),
        health_url=f"http://127.0.0.1:{port}/health",
    )


def serving() -> Service:
    """Answers with local models. A question that comes while it is away is answered by a worker of the queue gpu."""
    return Service("serving", (sys.executable, "-m", "backend.cli", "serve"), stop_steps=SERVING_STOP)


def worker(queue: str, concurrency: int | None) -> Service:
    """A worker for one queue; without a concurrency it runs its tasks in its own process, one after the other."""
    pool = ("-P", "solo") if concurrency is None else ("-c", str(concurrency))
    return _celery(f"worker-{queue}", "worker", "-Q", queue, *pool, "-n", f"{queue}@%h", *WORKER_OPTIONS)


def beat(data_dir: Path) -> Service:
    """The scheduler, not inside a worker (`-B`): that forks it, and nobody would notice the death of the fork."""
    return _celery("beat", "beat", "-s", str(data_dir / "beat-schedule"), "--pidfile=")


def _celery(name: str, *arguments: str) -> Service:
    command = (sys.executable, "-m", "celery", "-A", "celery_app.app", *arguments, "-l", "warning")
    return Service(name, command, stop_steps=WORKER_STOP, orphan_signal=signal.SIGQUIT)


def reachable(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`, ready for a URL."""
    address = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{address}]" if ":" in address else address


class ServiceProcess(Child):
    """A service under supervision."""

    def __init__(self, service: Service, log: Path, env: Mapping[str, str]) -> None:
        super().__init__(service.name, log)
        self.service = service
        self.stop_steps = service.stop_steps
        self._env = {**env, **service.env}

    def spawn(self) -> subprocess.Popen[bytes]:
        return processes.spawn(
            self.service.command,
            log=self.log,
            env={**self._env, **self.mark},
            orphan_signal=self.service.orphan_signal,
        )

    def ready(self) -> bool:
        return self.service.health_url is None or answers(self.service.health_url)


def answers(url: str) -> bool:
    """Whether a GET gives 200. Not by urllib, which would ask the proxy that the environment may name."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=2)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
