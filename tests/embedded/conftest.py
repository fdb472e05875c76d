"""Folders that every user can enter, and stacks in processes of their own, for the tests of the embedded stack."""

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.embedded import processes
from tests.embedded.product import Product


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this machine can enter (pytest's own cannot be)."""
    folder = Path(tempfile.mkdtemp(prefix="ftf-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def product(open_folder: Path) -> Iterator[Callable[..., Product]]:
    """Makes stacks in processes of their own; whatever still runs after the test is killed."""
    made: list[Product] = []

    def make(data_dir: Path | None = None, **options: object) -> Product:
        made.append(Product(data_dir or open_folder / "data", **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGKILL)
            one.process.wait()
        processes.kill_marked({"FINETUNEFLOW_STACK": str(one.data_dir.resolve())})
        one.output.unlink()
