"""Entry of the child: `python -m backend.contents.web SOURCE DESTINATION "text/html;CHARSET" LIMITS PARENT_PID`.

It prints one JSON object: the facts of the page whose text DESTINATION holds, else `{"code", "sentence"}`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from backend.contents.parsers.confinement import (
    die_with_parent,
    limit_resources,
    refuse_network_and_processes,
    start_step,
)
from backend.contents.parsers.failures import DocumentBroken, DocumentTooComplex, EmptyDocument, ExtractionError
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.parsers.writer import write_document


def main(source: Path, destination: Path, mime_type: str, limits: ExtractionLimits) -> dict[str, Any]:
    """Reads one page into `destination`; a failure is told, not raised."""
    # The memory that a failure needs to be told is set aside while there is some.
    spare = [bytearray(1024 * 1024)]
    try:
        if not source.stat().st_size:
            raise EmptyDocument
        try:
            from backend.contents.parsers.page import parse_page
        except (ImportError, OSError) as error:
            # A library that does not fit into the memory cannot be loaded.
            raise DocumentTooComplex from error
        with destination.open("r+b") as file:
            refuse_network_and_processes()
            start_step(limits)
            facts, blocks = parse_page(source, mime_type.partition(";")[2])
            write_document(file, blocks, None, limits)
            return facts.to_dict()
    except ExtractionError as error:
        return _told(error)
    except (MemoryError, RecursionError):
        spare.clear()
        return _told(DocumentTooComplex())
    except Exception as error:
        # A stranger's bytes found a way that was not foreseen; the type of the error is for the log.
        spare.clear()
        sys.stderr.write(f"{type(error).__name__}: {error}"[:500] + "\n")
        return _told(DocumentBroken())


def _told(error: ExtractionError) -> dict[str, Any]:
    return {"code": error.code, "sentence": str(error)}


if __name__ == "__main__":
    source_path, destination_path, mime, limits_json, parent = sys.argv[1:]
    die_with_parent(int(parent))
    bounds = ExtractionLimits.from_json(limits_json)
    limit_resources(bounds)
    sys.stdout.write(json.dumps(main(Path(source_path), Path(destination_path), mime, bounds)))
