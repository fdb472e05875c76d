"""A stranger's file to normalised rows, in a child process that may fail, hang or swell without harm to the caller."""

from pathlib import Path
from typing import Any

from backend.contents.extraction import ExtractionLimits, run_confined


async def normalise(path: Path, mime_type: str, destination: Path, limits: ExtractionLimits) -> dict[str, Any]:
    """Writes the rows of the file at `path` to `destination`, which it makes; returns the report (see ImportReport).

    Raises an ExtractionError for a file that cannot be read at all; then `destination` does not exist.
    """
    destination.touch(mode=0o600)
    done = False
    try:
        report = await run_confined("backend.contents.records", path, destination, mime_type, limits)
        done = True
        return report
    finally:
        if not done:
            destination.unlink(missing_ok=True)
