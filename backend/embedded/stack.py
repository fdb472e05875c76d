"""The whole product in one data folder, from start to clean stop: servers, migrations, API, workers, local LLM."""

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values

from backend.embedded import processes, services
from backend.embedded.child import Child
from backend.embedded.data_folder import DataFolder, StackState
from backend.embedded.postgres import Postgres
from backend.embedded.processes import Identity, ProcessRecord
from backend.embedded.services import Service, ServiceProcess
from backend.embedded.supervisor import Supervisor
from backend.embedded.valkey import Valkey
from backend.providers.llm.choice import parted

STACK_MARK = "FINETUNEFLOW_STACK"
EMBEDDED_LLM_MODEL = "SmolLM2-135M-Instruct"
CHECK_SECONDS = 0.1
Hook = Callable[[str], None]


class AddressUnusable(RuntimeError):
    """The API cannot listen where it should."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} on {host} is in use: stop what listens there, or choose another one with --port"
        else:
            reason = f"cannot listen on port {port} of {host} ({error.strerror}): choose another --port or --host"
        super().__init__(f"{reason} (port 0 takes any that is free)")


class StackStopped(RuntimeError):
    """The start was interrupted by a stop."""


@dataclass(frozen=True)
class StackOptions:
    """What to run and where. A URL that is None means: start our own; `port` 0 means: any that is free.

    `migrate` and `on_start` are called with the database's URL, in this order, before the services start.
    `services` makes the list of services from the started stack; by default the product's.
    """

    data_dir: Path = Path(".finetuneflow")
    host: str = "127.0.0.1"
    port: int = 8000
    database_url: str | None = None
    redis_url: str | None = None
    storage_url: str | None = None
    llm_base_url: str | None = None
    llm_model: str | None = None
    auth_mode: str | None = None
    secret_key: str | None = None
    queues: Mapping[str, int] = field(default_factory=lambda: dict(services.QUEUES))
    env: Mapping[str, str] = field(default_factory=dict)
    migrate: Hook = lambda database_url: None
    on_start: Hook = lambda database_url: None
    services: "Callable[[EmbeddedStack], list[Service]] | None" = None
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    start_timeout_seconds: float = 60.0

    @classmethod
    def from_environment(cls, **options: object) -> "StackOptions":
        """Options as given, and the rest from the environment and from .env, like the product's settings."""
        found = {**dotenv_values(".env"), **os.environ}
        names = (
            "data_dir",
            "database_url",
            "redis_url",
            "storage_url",
            "llm_base_url",
            "llm_model",
            "auth_mode",
            "secret_key",
        )
        values: dict[str, object] = {name: found[name.upper()] for name in names if found.get(name.upper())}
        values.update(options)
        values["data_dir"] = Path(str(values.get("data_dir", cls.data_dir)))
        return cls(**values)  # type: ignore[arg-type]


class EmbeddedStack:
    """One running product. `start` returns when the API is healthy; children that end are started again until `stop`.

    All children are started by one thread of the stack's own: the kernel ties their lives to it.
    """

    def __init__(self, options: StackOptions) -> None:
        self.options = options
        self.folder = DataFolder(options.data_dir)
        self.postgres: Postgres | None = None
        self.valkey: Valkey | None = None
        self.port = options.port
        self.llm_port: int | None = None
        self.seconds: dict[str, float] = {}
        self._started_at = 0.0
        self._services: list[ServiceProcess] = []
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._settled = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="embedded-stack", daemon=True)
        marks = {STACK_MARK: str(self.folder.path)}
        self._supervisor = Supervisor(
            ProcessRecord(self.folder.path / "processes.json"), marks, options.report, self._write_state
        )

    @property
    def api_url(self) -> str:
        return f"http://{services.reachable(self.options.host)}:{self.port}"

    @property
    def database_url(self) -> str:
        return self.options.database_url or (self.postgres.url() if self.postgres else "")

    @property
    def redis_url(self) -> str:
        return self.options.redis_url or (self.valkey.url() if self.valkey else "")

    @property
    def llm_base_url(self) -> str:
        return self.options.llm_base_url or (f"http://127.0.0.1:{self.llm_port}/v1" if self.llm_port else "")

    def start(self) -> None:
        """Bring everything up.

        Raises StackAlreadyRunning, DataFolderUnusable, PlaceUnusable, PostgresError, ValkeyUnusable, AddressUnusable,
        ChildFailed, StackStopped, and what the hooks raise. Nothing is left running then.
        """
        self._started_at = time.monotonic()
        self.folder.make()
        self.folder.lock()
        self._thread.start()
        try:
            self._settled.wait()
        except BaseException:  # Ctrl-C where nobody handles the signal
            self.stop(hurry=True)
            raise
        if self._error:
            self._thread.join()
            raise self._error

    def stop(self, *, hurry: bool = False) -> None:
        """End everything, and wait for it: about 3 s when idle, at most about 20; with `hurry`, by force at once."""
        self.request_stop(hurry=hurry)
        if self._thread.ident is None:
            return
        try:
            self._thread.join()
        except KeyboardInterrupt:  # the second Ctrl-C
            self._hurry.set()
            self._thread.join()
            raise

    def request_stop(self, *, hurry: bool = False) -> None:
        """Ask for the end without waiting; may be called from a signal handler."""
        if hurry:
            self._hurry.set()
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; True once everything is down."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether it ended by itself, because its supervisor broke down."""
        return self._error is not None

    def pids(self) -> dict[str, int]:
        """Name and pid of every child that runs now."""
        return self._supervisor.pids()

    def environment(self) -> dict[str, str]:
        """What the services see. Holds passwords and keys."""
        options, found = self.options, {**dotenv_values(".env"), **os.environ}
        own = {
            "DATA_DIR": str(self.folder.path),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "STORAGE_URL": options.storage_url or (self.folder.path / "storage").as_uri(),
            "LLM_BASE_URL": self.llm_base_url,
            "LLM_MODEL": options.llm_model or ("" if options.llm_base_url else EMBEDDED_LLM_MODEL),
            "AUTH_MODE": options.auth_mode or "local",
            "SECRET_KEY": options.secret_key or self.folder.secret("secret_key"),
            # Two torch threads beside another busy process fall to a crawl when OpenMP spins.
            "OMP_WAIT_POLICY": found.get("OMP_WAIT_POLICY") or "PASSIVE",
            "TOKENIZERS_PARALLELISM": found.get("TOKENIZERS_PARALLELISM") or "false",
            "PYTHONUNBUFFERED": "1",
            STACK_MARK: str(self.folder.path),
        }
        return {**os.environ, **own, **options.env}

    def _run(self) -> None:
        try:
            self._bring_up()
            self._settled.set()
            while not self._stop.wait(CHECK_SECONDS):
                self._supervisor.check()
        except BaseException as error:  # handed to the thread that waits in start(), or reported
            self._error = error
            if self._settled.is_set():
                self.options.report(f"the stack stops because its supervisor failed: {error!r}")
        finally:
            try:
                self._take_down()
            finally:
                self._settled.set()

    def _bring_up(self) -> None:
        self._supervisor.reap_orphans()
        self._choose_ports()
        self.folder.subfolder("storage")
        self._start_servers()
        self._note("servers")
        self._proceed()
        self.options.migrate(self.database_url)
        self._proceed()
        self.options.on_start(self.database_url)
        self._note("migrations")
        self._start_services()
        self._write_state()

    def _choose_ports(self) -> None:
        host = self.options.host
        if not self.options.port:
            self.port = processes.free_port(host)
        elif error := processes.listen_error(host, self.port):
            raise AddressUnusable(host, self.port, error)
        # A provider's model needs no server of ours.
        if not self.options.llm_base_url and not parted(self.options.llm_model or "")[0]:
            self.llm_port = processes.free_port()

    def _start_servers(self) -> None:
        """Both at once: the first start of PostgreSQL takes a second."""
        marks = {STACK_MARK: str(self.folder.path)}
        if not self.options.redis_url:
            self.valkey = Valkey(self.folder.path / "valkey", log=self.folder.log("valkey"), env=marks)
        if not self.options.database_url:
            self.postgres = Postgres(self.folder.path / "postgres", log=self.folder.log("postgres"), env=marks)
        for server in self._servers():
            processes.rotate_log(server.log)
            server.prepare()
            self._supervisor.launch(server)
        self._supervisor.wait_ready(self._servers(), self.options.start_timeout_seconds, 5, self._proceed)

    def _servers(self) -> list[Child]:
        return [server for server in (self.valkey, self.postgres) if server]

    def _start_services(self) -> None:
        make = self.options.services or _product_services
        environment = self.environment()
        for service in make(self):
            child = ServiceProcess(service, self.folder.log(service.name), environment)
            self._services.append(child)
            processes.rotate_log(child.log)
            self._supervisor.launch(child, needs=self._servers())
            if service.awaited:
                self._supervisor.wait_ready([child], self.options.start_timeout_seconds, 2, self._proceed)
                self._note(service.name)

    def _take_down(self) -> None:
        """In reverse: those who take work, then those who give it, then the servers they write their last words to."""
        awaited = [child for child in self._services if child.service.awaited]
        others = [child for child in self._services if not child.service.awaited]
        try:
            for group in (others, awaited, self._servers()):
                self._supervisor.stop(group, self._hurry.is_set)
        finally:
            self.folder.clear_state()
            self.folder.unlock()

    def _proceed(self) -> None:
        if self._stop.is_set():
            raise StackStopped("stopped while it was starting")

    def _note(self, phase: str) -> None:
        self.seconds[phase] = round(time.monotonic() - self._started_at, 3)

    def _write_state(self) -> None:
        if not self._services:
            return
        identity = Identity.of(os.getpid())
        assert identity is not None
        state = StackState(
            pid=identity.pid,
            started=identity.started,
            data_dir=str(self.folder.path),
            api_url=self.api_url,
            database_url=self.database_url,
            redis_url=self.redis_url,
            llm_base_url=self.llm_base_url,
            processes=self.pids(),
        )
        self.folder.write_state(state)


@contextlib.contextmanager
def running(options: StackOptions) -> Iterator[EmbeddedStack]:
    """A live stack for the length of the block. Raises as `EmbeddedStack.start` does."""
    stack = EmbeddedStack(options)
    stack.start()
    try:
        yield stack
    except KeyboardInterrupt:
        stack.request_stop()
        raise
    finally:
        stack.stop()


def _product_services(stack: EmbeddedStack) -> list[Service]:
    options = stack.options
    return services.product_services(stack.folder.path, options.host, stack.port, stack.llm_port, options.queues)
