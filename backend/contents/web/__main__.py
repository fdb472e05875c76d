"""Entry of the child that reads pages: `python -m backend.contents.web`, see `contents.parsers.child`.

Its MIME_TYPE is "text/html;CHARSET". It tells the facts of the page whose text DESTINATION holds.
"""

from pathlib import Path
from typing import Any

from backend.contents.parsers import child
from backend.contents.parsers.failures import DocumentTooComplex, EmptyDocument
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.parsers.writer import write_document


def read_page(source: Path, destination: Path, mime_type: str, limits: ExtractionLimits) -> dict[str, Any]:
    if not source.stat().st_size:
        raise EmptyDocument
    try:
        from backend.contents.parsers.page import parse_page
    except (ImportError, OSError) as error:
        # A library that does not fit into the memory cannot be loaded.
        raise DocumentTooComplex from error
    with destination.open("r+b") as file:
        child.confine(limits)
        facts, blocks = parse_page(source, mime_type.partition(";")[2])
        write_document(file, blocks, None, limits)
        return facts.to_dict()


if __name__ == "__main__":
    child.run(read_page)
