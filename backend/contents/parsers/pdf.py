"""PDF pages to lines of text with their place, size and weight, one page in memory at a time (PDFium)."""

import ctypes
import re
from collections import Counter
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
from backend.contents.parsers.pdf_layout import Line, Page, Typography, lay_out

_SAMPLED_PAGES = 24
_MAX_PAGE_CHARACTERS = 400_000
_FIXED_PITCH, _FORCE_BOLD = 1 << 0, 1 << 18
_BOLD_NAME = re.compile(r"bold|black|heavy|semibold|demi|cmbx|sfbx|nimbus.*medi", re.IGNORECASE)
_MONO_NAME = re.compile(r"mono|courier|consol|cmtt|sftt|typewriter|menlo|cour\b", re.IGNORECASE)
# A line ends at CR LF, and at the mark that stands for a hyphen which PDFium took for one of hyphenation.
_LINE_END = re.compile("\r\n|\r|\n|\ufffe|\x02")
_HYPHENS = "\ufffe\x02"
# In units of the font size: wider than any justified space, so it separates two cells. Where the file has no space at
# all but jumps to a place, less is enough.
_CELL_GAP = 1.6
_CELL_JUMP = 1.0
_FEWEST_CHARACTERS_A_PAGE = 16


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
    sample = list(_pages(document, range(0, pages, -(-pages // _SAMPLED_PAGES)), limits))
    typography = Typography.of(sample)
    # A short document is its own sample, and is read once.
    source = iter(sample) if len(sample) == pages else _pages(document, range(pages), limits)
    del sample
    read = _Tally()
    yield from lay_out(read.count(source), typography)
    if read.letters == 0 and not read.pages_with_objects:
        raise EmptyDocument
    # A scan may carry a stamp or a page number as text.
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

    def count(self, pages: Iterable[Page]) -> Iterator[Page]:
        for page in pages:
            self.letters += sum(sum(c.isalnum() for c in line.text) for line in page.lines)
            self.pages_with_objects += page.has_objects
            self.pages_with_images += page.has_images
            yield page


def _pages(document: "pdfium.FPDF_DOCUMENT", numbers: Iterable[int], limits: ExtractionLimits) -> Iterator[Page]:
    for index in numbers:
        start_step(limits)
        page = pdfium.FPDF_LoadPage(document, index)
        if not page:
            # One damaged page does not lose the others.
            yield Page(index + 1, 0.0, [], has_objects=True, has_images=False)
            continue
        try:
            yield _page(page, index + 1)
        finally:
            pdfium.FPDF_ClosePage(page)


def _page(page: "pdfium.FPDF_PAGE", number: int) -> Page:
    objects = pdfium.FPDFPage_CountObjects(page)
    # Images may stand inside forms, so a form on a page without text counts as one.
    has_images = any(
        pdfium.FPDFPageObj_GetType(pdfium.FPDFPage_GetObject(page, index))
        in (pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_FORM)
        for index in range(min(objects, 200))
    )
    with _text_page(page) as text_page:
        lines = list(_lines(text_page)) if text_page else []
    return Page(number, pdfium.FPDF_GetPageHeightF(page), lines, has_objects=objects > 0, has_images=has_images)


@contextmanager
def _text_page(page: "pdfium.FPDF_PAGE") -> Iterator["pdfium.FPDF_TEXTPAGE | None"]:
    text_page = pdfium.FPDFText_LoadPage(page)
    try:
        yield text_page or None
    finally:
        if text_page:
            pdfium.FPDFText_ClosePage(text_page)


def _lines(text_page: "pdfium.FPDF_TEXTPAGE") -> Iterator[Line]:
    count = min(pdfium.FPDFText_CountChars(text_page), _MAX_PAGE_CHARACTERS)
    if count <= 0:
        return
    buffer = (ctypes.c_ushort * (2 * count + 2))()
    written = pdfium.FPDFText_GetText(text_page, 0, count, buffer)
    # One character a UTF-16 unit, so that positions are PDFium's; surrogates are paired when a line is cut out.
    text = "".join(map(chr, buffer[: max(0, written - 1)]))
    glyphs = _Glyphs(text_page)
    start = 0
    for end in [*_LINE_END.finditer(text), None]:
        stop = end.start() if end else len(text)
        line = glyphs.line(text, start, stop, hyphenated=bool(end) and text[stop] in _HYPHENS)
        if line is not None:
            yield line
        start = end.end() if end else stop


class _Glyphs:
    """Geometry of characters, by their index in the text of one page."""

    def __init__(self, text_page: "pdfium.FPDF_TEXTPAGE") -> None:
        self._page = text_page
        self._edges = [ctypes.c_double() for _ in range(4)]
        self._matrix = pdfium.FS_MATRIX()
        self._name = ctypes.create_string_buffer(128)
        self._flags = ctypes.c_int()

    def line(self, text: str, start: int, stop: int, *, hyphenated: bool) -> Line | None:
        while start < stop and text[start].isspace():
            start += 1
        while stop > start and text[stop - 1].isspace():
            stop -= 1
        if start >= stop:
            return None
        first, middle, last = (self._index(at) for at in (start, (start + stop - 1) // 2, stop - 1))
        left, _, bottom, top = self._box(first)
        _, right, _, _ = self._box(last)
        samples = [index for index in (first, middle, last) if not pdfium.FPDFText_IsGenerated(self._page, index)]
        sizes = Counter(self._size(index) for index in samples or [first])
        size = sizes.most_common(1)[0][0] or max(1.0, top - bottom)
        faces = [self._face(index) for index in samples or [first]]
        return Line(
            text=_paired(self._with_cells(text, start, stop, size)),
            x0=left,
            x1=right,
            y=self._baseline(first, bottom),
            size=size,
            bold=all(bold for bold, _ in faces),
            mono=all(mono for _, mono in faces),
            hyphenated=hyphenated,
        )

    def _with_cells(self, text: str, start: int, stop: int, size: float) -> str:
        """The text of a line with a tab where a gap is too wide for a space."""
        parts: list[str] = []
        begun = start
        at = text.find(" ", start, stop)
        while at >= 0:
            after = at + 1
            while after < stop and text[after] == " ":
                after += 1
            if after < stop and at > start:
                _, right, _, _ = self._box(self._index(at - 1))
                left, _, _, _ = self._box(self._index(after))
                jumps = pdfium.FPDFText_IsGenerated(self._page, self._index(at)) == 1
                if left - right > (_CELL_JUMP if jumps else _CELL_GAP) * size:
                    parts.append(text[begun:at])
                    begun = after
            at = text.find(" ", after, stop)
        return "\t".join([*parts, text[begun:stop]])

    def _index(self, at: int) -> int:
        index = pdfium.FPDFText_GetCharIndexFromTextIndex(self._page, at)
        return index if index >= 0 else at

    def _box(self, index: int) -> tuple[float, float, float, float]:
        """Left, right, bottom and top in points; zeros where PDFium does not know."""
        left, right, bottom, top = self._edges
        for edge in self._edges:
            edge.value = 0.0
        pdfium.FPDFText_GetCharBox(self._page, index, left, right, bottom, top)
        return left.value, right.value, bottom.value, top.value

    def _baseline(self, index: int, bottom: float) -> float:
        x, y = self._edges[:2]
        return y.value if pdfium.FPDFText_GetCharOrigin(self._page, index, x, y) else bottom

    def _size(self, index: int) -> float:
        """The size as it looks: that of the font times the scale of the text matrix, to half a point."""
        size = float(pdfium.FPDFText_GetFontSize(self._page, index))
        if pdfium.FPDFText_GetMatrix(self._page, index, self._matrix):
            scale = (self._matrix.c**2 + self._matrix.d**2) ** 0.5
            size *= scale or 1.0
        return round(2 * size) / 2 if 0 < size < 10_000 else 0.0

    def _face(self, index: int) -> tuple[bool, bool]:
        """Whether the font of a character is bold, and whether it is monospaced."""
        self._flags.value = 0
        self._name.value = b""
        pdfium.FPDFText_GetFontInfo(self._page, index, self._name, len(self._name), self._flags)
        name = self._name.value.decode("utf-8", errors="replace")
        bold = bool(self._flags.value & _FORCE_BOLD) or bool(_BOLD_NAME.search(name))
        return bold, bool(self._flags.value & _FIXED_PITCH) or bool(_MONO_NAME.search(name))


def _paired(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
