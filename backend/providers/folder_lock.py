"""A lock on a folder between processes, freed by the kernel when its holder dies."""

import fcntl
from pathlib import Path
from typing import IO

LOCK_FILE = ".lock"


def try_lock(folder: Path) -> IO[str] | None:
    """Lock `folder` (made if needed) without waiting; close the result to unlock it. None: another one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / LOCK_FILE).open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except BaseException:
        handle.close()
        raise
    return handle
