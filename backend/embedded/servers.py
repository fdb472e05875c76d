"""PostgreSQL and Valkey alone in a folder of their own, without durability: for tests and measurements."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backend.embedded.child import end_all, wait_ready
from backend.embedded.postgres import Postgres
from backend.embedded.valkey import Valkey


@dataclass(frozen=True)
class Servers:
    """Two live servers; `postgres` also makes and drops databases."""

    postgres: Postgres
    valkey: Valkey

    @property
    def database_url(self) -> str:
        return self.postgres.url()

    @property
    def redis_url(self) -> str:
        return self.valkey.url()


@contextlib.contextmanager
def temporary_servers() -> Iterator[Servers]:
    """Start both, and leave nothing behind. Under a second.

    Enter it from a thread that lives as long as the block: on Linux the kernel ends the servers with it.
    """
    folder = Path(tempfile.mkdtemp(prefix="finetuneflow-"))
    folder.chmod(0o711)  # ours: the user nobody, who runs PostgreSQL for root, must be able to enter
    postgres = Postgres(folder / "postgres", fast=True)
    valkey = Valkey(folder / "valkey", fast=True)
    place = None
    try:
        place = postgres.place.folder  # elsewhere, when root's temporary folder is one that nobody can enter
        for server in (valkey, postgres):
            server.prepare()
            server.launch()
        wait_ready([postgres, valkey], 30.0)
        yield Servers(postgres, valkey)
    finally:
        end_all([postgres, valkey])
        for path in {folder, place or folder}:
            shutil.rmtree(path, ignore_errors=True)
