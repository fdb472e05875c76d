"""Where a job keeps files on their way: a folder of its own, which goes when the job does."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

# What a killed process left is removed by the next run of its job, or after this time by any.
_LEFT_SECONDS = 24 * 3600


@contextmanager
def own_folder(folder: Path, job: str) -> Iterator[Path]:
    """A new folder inside `folder`, removed at the end; what killed runs left goes too."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        with suppress(OSError):
            if left.name.startswith(job) or left.stat().st_mtime < time.time() - _LEFT_SECONDS:
                shutil.rmtree(left)
    with TemporaryDirectory(prefix=f"{job}-", dir=folder, ignore_cleanup_errors=True) as own:
        yield Path(own)
