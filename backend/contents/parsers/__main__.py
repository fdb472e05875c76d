"""Entry of the child: `python -m backend.contents.parsers SOURCE DESTINATION MIME_TYPE LIMITS PARENT_PID`.

It prints one JSON object: `{"summary": true}` when DESTINATION holds the document, else `{"code", "sentence"}`.
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from backend.contents.blocks import Block
from backend.contents.parsers.confinement import (
    die_with_parent,
    limit_resources,
    refuse_network_and_processes,
    start_step,
)
from backend.contents.parsers.failures import DocumentBroken, DocumentTooComplex, EmptyDocument, ExtractionError
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.parsers.writer import write_document

Parsed = tuple[int | None, Iterable[Block]]


def main(source: Path, destination: Path, mime_type: str, limits: ExtractionLimits) -> ExtractionError | None:
    """Parse one document into `destination`; the failure is returned, not raised."""
    # The memory that a failure needs to be told is set aside while there is some.
    spare = [bytearray(1024 * 1024)]
    try:
        if not source.stat().st_size:
            raise EmptyDocument
        try:
            parse = _parser(mime_type)
        except (ImportError, OSError) as error:
            # A library that does not fit into the memory cannot be loaded.
            raise DocumentTooComplex from error
        with destination.open("r+b") as file:
            refuse_network_and_processes()
            start_step(limits)
            pages, blocks = parse(source, limits)
            write_document(file, blocks, pages, limits)
    except ExtractionError as error:
        return error
    except (MemoryError, RecursionError):
        spare.clear()
        return DocumentTooComplex()
    except Exception as error:
        # A stranger's bytes found a way that no parser foresaw; the type of the error is for the log.
        spare.clear()
        print(f"{type(error).__name__}: {error}"[:500], file=sys.stderr)
        return DocumentBroken()
    return None


def _parser(mime_type: str) -> Callable[[Path, ExtractionLimits], Parsed]:
    """Only what this document needs is imported: less to start, less to attack."""
    if mime_type == "application/pdf":
        from backend.contents.parsers.pdf import parse_pdf

        return parse_pdf
    if mime_type == "application/vnd.openxmlformats-officedocument.wordprocessingml.document":
        from backend.contents.parsers.word import parse_word

        return parse_word
    if mime_type == "text/markdown":
        from backend.contents.parsers.markdown import parse_markdown

        return parse_markdown
    if mime_type == "text/plain":
        from backend.contents.parsers.plain import parse_plain

        return parse_plain
    raise DocumentBroken(
        f"Documents of type {mime_type} cannot be read. Upload a PDF, DOCX, text or Markdown document."
    )


if __name__ == "__main__":
    source_path, destination_path, mime, limits_json, parent = sys.argv[1:]
    die_with_parent(int(parent))
    bounds = ExtractionLimits.from_json(limits_json)
    limit_resources(bounds)
    failure = main(Path(source_path), Path(destination_path), mime, bounds)
    print(json.dumps({"summary": True} if failure is None else {"code": failure.code, "sentence": str(failure)}))
