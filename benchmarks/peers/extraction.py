"""The readers that extraction is measured against: ours in this process and in its child, pypdf, and PDFium plainly."""

import asyncio
import io
import logging
import tempfile
from pathlib import Path


def ours(path: Path) -> bytes:
    """The product's parser without its child: what reading costs once everything is imported."""
    from backend.contents.parsers import pdf
    from backend.contents.parsers.limits import ExtractionLimits
    from backend.contents.parsers.writer import write_document

    limits = ExtractionLimits(step_cpu_seconds=0)  # no timer: this process is not expendable
    pages, blocks = pdf.parse_pdf(path, limits)
    stored = io.BytesIO()
    write_document(stored, blocks, pages, limits)
    return stored.getvalue()


def ours_in_child(path: Path) -> bytes:
    """As an upload runs it: a new process that limits itself, and the file that it writes."""
    from backend.contents.extraction import extract_to_file
    from backend.contents.types import PDF

    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "text.jsonl"
        asyncio.run(extract_to_file(path, PDF, stored))
        return stored.read_bytes()


def pypdf(path: Path) -> str:
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    with pypdf.PdfReader(path) as reader:
        return "\n".join(page.extract_text() for page in reader.pages)


def pdfium(path: Path) -> str:
    import pypdfium2

    texts = []
    document = pypdfium2.PdfDocument(path)
    for number in range(len(document)):
        page = document[number]
        text_page = page.get_textpage()
        texts.append(text_page.get_text_range())
        text_page.close()
        page.close()
    document.close()
    return "\n".join(texts)


def text_of(read: bytes | str) -> str:
    """What a reader gave as one text; ours gives a stored document, which is the form that the product works with."""
    from backend.contents.blocks import read_blocks

    return read if isinstance(read, str) else "\n".join(block.text for block in read_blocks(io.BytesIO(read)))
