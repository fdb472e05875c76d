"""The frame of every confined child: its arguments, its limits, and the one JSON object that it prints."""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend.contents.parsers.confinement import (
    die_with_parent,
    limit_resources,
    refuse_network_and_processes,
    start_step,
)
from backend.contents.parsers.failures import DocumentBroken, DocumentTooComplex, DocumentTooLarge, ExtractionError
from backend.contents.parsers.limits import ExtractionLimits

# Reads a file of a type into another one, and returns what the parent is told. It calls `confine` when its libraries
# and its files are open.
Work = Callable[[Path, Path, str, ExtractionLimits], dict[str, Any]]
_SPARE_BYTES = 1024 * 1024


def run(work: Work) -> None:
    """The child's whole life. Arguments: SOURCE DESTINATION MIME_TYPE LIMITS PARENT_PID."""
    source, destination, mime_type, limits_json, parent = sys.argv[1:]
    die_with_parent(int(parent))
    limits = ExtractionLimits.from_json(limits_json)
    limit_resources(limits)
    sys.stdout.write(json.dumps(_told(work, Path(source), Path(destination), mime_type, limits)))


def confine(limits: ExtractionLimits) -> None:
    """From here on: no network, no other process, and the clock of the step runs."""
    refuse_network_and_processes()
    start_step(limits)


def _told(work: Work, source: Path, destination: Path, mime_type: str, limits: ExtractionLimits) -> dict[str, Any]:
    """What the work returns, or {"code", "sentence"} of its failure."""
    # The memory that a failure needs to be told is set aside while there is some.
    spare = [bytearray(_SPARE_BYTES)]
    try:
        return work(source, destination, mime_type, limits)
    except ExtractionError as error:
        failure = error
    except (MemoryError, RecursionError):
        spare.clear()
        failure = DocumentTooComplex()
    except Exception as error:
        # A stranger's bytes found a way that no parser foresaw; the type of the error is for the log.
        spare.clear()
        sys.stderr.write(f"{type(error).__name__}: {error}"[:500] + "\n")
        is_full = isinstance(error, OSError) and error.errno == errno.EFBIG
        failure = DocumentTooLarge() if is_full else DocumentBroken()
    return {"code": failure.code, "sentence": str(failure)}
