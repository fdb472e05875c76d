"""Entry of the child that reads documents: `python -m backend.contents.parsers`, see `child.run`.

It tells `{"summary": true}` when DESTINATION holds the document.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from backend.contents.blocks import Block
from backend.contents.parsers import child
from backend.contents.parsers.failures import DocumentBroken, DocumentTooComplex, EmptyDocument
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.parsers.writer import write_document

Parsed = tuple[int | None, Iterable[Block]]


def read_document(source: Path, destination: Path, mime_type: str, limits: ExtractionLimits) -> dict[str, Any]:
    if not source.stat().st_size:
        raise EmptyDocument
    try:
        parse = _parser(mime_type)
    except (ImportError, OSError) as error:
        # A library that does not fit into the memory cannot be loaded.
        raise DocumentTooComplex from error
    with destination.open("r+b") as file:
        child.confine(limits)
        pages, blocks = parse(source, limits)
        write_document(file, blocks, pages, limits)
    return {"summary": True}


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
    child.run(read_document)
