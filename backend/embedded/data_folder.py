"""The data folder: made with care, locked by one stack at a time, with its secrets, logs and the state of what runs."""

import fcntl
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from backend.embedded import processes

_STATE = "stack.json"


class DataFolderUnusable(RuntimeError):
    """The folder cannot be made or written; the message says what to change."""


class StackAlreadyRunning(RuntimeError):
    """Another stack holds the folder."""

    def __init__(self, folder: Path, pid: int | None) -> None:
        who = f"process {pid}" if pid else "another process"
        stop = f" (stop it with Ctrl-C, or `kill {pid}`)" if pid else ""
        super().__init__(
            f"{who} already runs FineTuneFlow on {folder}: use that one{stop}, or choose another data folder"
        )
        self.pid = pid


@dataclass(frozen=True)
class StackState:
    """A running stack, as found in stack.json; the URLs hold passwords."""

    pid: int
    started: str
    data_dir: str
    api_url: str
    database_url: str
    redis_url: str
    llm_base_url: str
    processes: dict[str, int]


class DataFolder:
    """`path` is absolute and free of symbolic links."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self._lock: int | None = None

    def make(self) -> Self:
        """Make the folder if it is not there, for its owner alone; leave one that is there as it is.

        Root's folder may be entered (not listed) by others, because PostgreSQL in it runs as the user nobody; all that
        lies in it is private by itself. Raises DataFolderUnusable.
        """
        mode = 0o711 if os.geteuid() == 0 else 0o700
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.path.mkdir(mode=mode)
                self.path.chmod(mode)  # whatever the umask
            except FileExistsError:
                if not self.path.is_dir():
                    raise NotADirectoryError(20, "it is a file") from None
            if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(13, "you may not write there")
            self.subfolder("logs")
        except OSError as error:
            raise DataFolderUnusable(
                f"cannot use {self.path} as the data folder: {error.strerror}. "
                f"Set DATA_DIR (or --data-dir) to a folder of yours"
            ) from error
        return self

    def lock(self) -> None:
        """Take the folder for this process until `unlock` or its end. Raises StackAlreadyRunning."""
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise StackAlreadyRunning(self.path, int(holder) if holder.isdigit() else None) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def unlock(self) -> None:
        """The file stays: removing a lock file lets two processes hold 'it' at once."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def subfolder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def secret(self, name: str, make: Callable[[], str] = lambda: secrets.token_hex(32)) -> str:
        """The secret of that name, made at the first call."""
        path = self.path / name
        if not path.exists():
            processes.write_private(path, make())
        return path.read_text().strip()

    def write_state(self, state: StackState) -> None:
        processes.write_private(self.path / _STATE, json.dumps(asdict(state), indent=1))

    def clear_state(self) -> None:
        (self.path / _STATE).unlink(missing_ok=True)


def read_state(data_dir: Path) -> StackState | None:
    """The stack that runs on this folder; None when there is none, whatever a killed one may have left behind."""
    try:
        state = StackState(**json.loads((data_dir.expanduser().resolve() / _STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return state if processes.Identity(state.pid, state.started).alive() else None
