"""PDF documents to blocks, one page in memory at a time (PDFium)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pypdfium2
import pypdfium2.raw as pdfium

from backend.contents.blocks import Block
from backend.contents.parsers.confinement import start_step
from backend.contents.parsers.failures import (
    DocumentBroken,
    DocumentEncrypted,
    DocumentHasNoText,
    DocumentTooLarge,
    EmptyDocument,
)
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.parsers.pdf_layout import Page, Typography, lay_out
from backend.contents.parsers.pdf_order import in_reading_order
from backend.contents.parsers.pdf_text import TextReader

_SAMPLED_PAGES = 24
# A sampled page of more lines is read again rather than kept.
_LINES_WORTH_KEEPING = 500
_FEWEST_CHARACTERS_A_PAGE = 16
# A page with fewer letters may be a picture of a page, with a stamp or a page number as text.
_FEW_LETTERS = 64
_OBJECTS_LOOKED_AT = 200


def parse_pdf(source: Path, limits: ExtractionLimits) -> tuple[int | None, Iterable[Block]]:
    """Pages and blocks of a PDF. Permission passwords do not matter; a password to open it is refused."""
    document = _open(source)
    pages = pdfium.FPDF_GetPageCount(document)
    if pages <= 0:
        raise EmptyDocument
    if pages > limits.pages:
        raise DocumentTooLarge(
            f"The document has {pages:,} pages, and {limits.pages:,} is the most that is read. "
            "Split it into smaller documents and upload those."
        )
    return pages, _blocks(document, pages, limits)


def _open(source: Path) -> "pdfium.FPDF_DOCUMENT":
    # The import of the package starts PDFium; it is named here so that no linter takes it for unused.
    assert pypdfium2.PYPDFIUM_INFO is not None
    document = pdfium.FPDF_LoadDocument(str(source).encode() + b"\0", None)
    if document:
        return document
    error = pdfium.FPDF_GetLastError()
    if error in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
        raise DocumentEncrypted
    raise DocumentBroken


def _blocks(document: "pdfium.FPDF_DOCUMENT", pages: int, limits: ExtractionLimits) -> Iterator[Block]:
    reader = _PageReader(document, limits)
    typography = Typography()
    kept: dict[int, Page] = {}
    for index in range(0, pages, -(-pages // _SAMPLED_PAGES)):
        page = reader.read(index)
        typography.learn(page)
        if len(page.lines) <= _LINES_WORTH_KEEPING:
            kept[index] = page
    read = _Tally()
    source = (kept.pop(index) if index in kept else reader.read(index) for index in range(pages))
    yield from lay_out(read.count(source), typography)
    if read.letters == 0 and not read.pages_with_objects:
        raise DocumentBroken if read.damaged_pages else EmptyDocument
    if read.letters == 0 or (
        read.pages_with_images > pages / 2 and read.letters < _FEWEST_CHARACTERS_A_PAGE * read.pages_with_images
    ):
        raise DocumentHasNoText


@dataclass(slots=True)
class _Tally:
    """What was seen on the way: it tells an empty document from a scanned one."""

    letters: int = 0
    pages_with_objects: int = 0
    pages_with_images: int = 0
    damaged_pages: int = 0

    def count(self, pages: Iterable[Page]) -> Iterator[Page]:
        for page in pages:
            self.letters += page.letters
            self.pages_with_objects += page.has_objects
            self.pages_with_images += page.has_images
            self.damaged_pages += page.is_damaged
            yield page


class _PageReader:
    """Loads one page of a document at a time."""

    def __init__(self, document: "pdfium.FPDF_DOCUMENT", limits: ExtractionLimits) -> None:
        self._document = document
        self._limits = limits
        self._text = TextReader()

    def read(self, index: int) -> Page:
        start_step(self._limits)
        page = pdfium.FPDF_LoadPage(self._document, index)
        if not page:
            # One damaged page does not lose the others.
            return Page(index + 1, 0.0, [], has_objects=False, is_damaged=True)
        try:
            return self._read(page, index + 1)
        finally:
            pdfium.FPDF_ClosePage(page)

    def _read(self, page: "pdfium.FPDF_PAGE", number: int) -> Page:
        with _text_page(page) as text_page:
            lines = in_reading_order(list(self._text.lines(text_page))) if text_page else []
        letters = 0
        for line in lines:
            letters += sum(map(str.isalnum, line.text))
            if letters >= _FEW_LETTERS:
                break
        read = Page(number, pdfium.FPDF_GetPageHeightF(page), lines, letters=letters, has_objects=True)
        if letters < _FEW_LETTERS:
            objects = pdfium.FPDFPage_CountObjects(page)
            read.has_objects = objects > 0
            read.has_images = _has_images(page, min(objects, _OBJECTS_LOOKED_AT))
        return read


def _has_images(page: "pdfium.FPDF_PAGE", objects: int) -> bool:
    """Images may stand inside forms, so a form on a page without text counts as one."""
    return any(
        pdfium.FPDFPageObj_GetType(pdfium.FPDFPage_GetObject(page, index))
        in (pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_FORM)
        for index in range(objects)
    )


@contextmanager
def _text_page(page: "pdfium.FPDF_PAGE") -> Iterator["pdfium.FPDF_TEXTPAGE | None"]:
    text_page = pdfium.FPDFText_LoadPage(page)
    try:
        yield text_page or None
    finally:
        if text_page:
            pdfium.FPDFText_ClosePage(text_page)
