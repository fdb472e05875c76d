"""The text of one PDF page as lines with their place, size and weight, by few calls into PDFium."""

import ctypes
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pypdfium2.raw as pdfium

MAX_PAGE_CHARACTERS = 400_000

_FIXED_PITCH, _FORCE_BOLD = 1 << 0, 1 << 18
_BOLD_NAME = re.compile(rb"bold|black|heavy|semibold|demi|cmbx|sfbx|nimbus.*medi", re.IGNORECASE)
_MONO_NAME = re.compile(rb"mono|courier|consol|cmtt|sftt|typewriter|menlo|cour\b", re.IGNORECASE)
# A line ends at CR LF, and at the mark that stands for a hyphen which PDFium took for one of hyphenation.
_LINE_END = re.compile("\r\n|\r|\n|\ufffe|\x02|\\Z")
_HYPHENS = "\ufffe\x02"
_SPACES = re.compile(" +")
# In units of the font size: wider than any justified space, so it separates two cells. Where the file has no space at
# all but jumps to a place, less is enough.
_CELL_GAP = 1.6
_CELL_JUMP = 1.0
# A long line that is hardly wider than its like has no such gap, and its spaces are not looked at one by one: by these
# many times the size, or by more where the line is of one piece and its spaces are characters.
_FEWEST_TYPICAL = 25
_WIDER = 0.5
_WIDER_OF_ONE_PIECE = 1.0
_FEWEST_KNOWN = 2_000
_FEWEST_STRETCHED = 3
_EVEN = 0.15
_MONO_ADVANCE = 0.6
_MAX_FACES = 4_096


@dataclass(slots=True)
class Line:
    """One line of a page, in points from its lower left corner.

    Tabs in `text` separate cells; `gaps` has the right end of the cell before and the left end of the one after each.
    """

    text: str
    x0: float
    x1: float
    y: float
    size: float
    bold: bool
    mono: bool
    hyphenated: bool
    gaps: list[tuple[float, float]] = field(default_factory=list)
    # How far below `y` the last line of a row stands whose cells have several lines.
    depth: float = 0.0

    @property
    def bottom(self) -> float:
        return self.y - self.depth


@dataclass(slots=True)
class _Face:
    """What a font looks like, and how wide its lines are: the sum of widths in units of the size, and of characters."""

    bold: bool
    mono: bool
    ems: float = 0.0
    characters: int = 0

    def is_wider_than_usual(self, ems: float, characters: int) -> bool:
        return self.characters < _FEWEST_KNOWN or ems > self.ems / self.characters * characters


class TextReader:
    """Reads the lines of the pages of one document; what it learned of its fonts is kept from page to page."""

    def __init__(self) -> None:
        self._page: pdfium.FPDF_TEXTPAGE | None = None
        self._direct = True
        self._box = pdfium.FS_RECTF()
        self._x, self._y = ctypes.c_double(), ctypes.c_double()
        self._top, self._bottom = ctypes.c_double(), ctypes.c_double()
        self._matrix = pdfium.FS_MATRIX()
        self._name = ctypes.create_string_buffer(128)
        self._flags = ctypes.c_int()
        self._faces: dict[tuple[bytes, int], _Face] = {}

    def lines(self, text_page: "pdfium.FPDF_TEXTPAGE") -> Iterator[Line]:
        """The lines in the order of the file."""
        self._page = text_page
        count = min(pdfium.FPDFText_CountChars(text_page), MAX_PAGE_CHARACTERS)
        if count <= 0:
            return
        buffer = (ctypes.c_ushort * (2 * count + 2))()
        written = max(0, pdfium.FPDFText_GetText(text_page, 0, count, buffer) - 1)
        # Positions in the text are those of the page's characters only if none was left out.
        self._direct = written == count
        text = bytes(buffer)[: 2 * written].decode("utf-16-le", "surrogatepass")
        paired = len(text) != written
        if paired:
            # One character a UTF-16 unit, so that positions are PDFium's; surrogates are paired again line by line.
            text = "".join(map(chr, buffer[:written]))
        start = 0
        for end in _LINE_END.finditer(text):
            stop = end.start()
            if start < stop:
                line = self._line(text, start, stop)
                if line is not None:
                    line.hyphenated = text[stop : stop + 1] in _HYPHENS and stop < len(text)
                    if paired:
                        line.text = line.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
                    yield line
            start = end.end()

    def _line(self, text: str, start: int, stop: int) -> Line | None:
        words = text[start:stop]
        start += len(words) - len(words.lstrip())
        words = words.strip()
        if not words:
            return None
        stop = start + len(words)
        first, last = self._index(start), self._index(stop - 1)
        x0, y = self._origin(first)
        _, x1 = self._edges(last)
        pieces = 1 if first == last else pdfium.FPDFText_CountRects(self._page, first, last - first + 1)
        whole = pieces == 1
        size, bold, mono, face = self._look(words, start, None if whole else (first, last))
        line = Line(words, x0, x1, y, size, bold, mono, hyphenated=False)
        space = words.find(" ")
        if space > 0:
            ems = (x1 - x0) / size
            spaced = not self._is_jump(start + space)
            apart = [] if whole else self._pieces_apart(pieces, _CELL_JUMP * size)
            wider = _WIDER_OF_ONE_PIECE if whole and spaced else _WIDER
            if apart and spaced and not mono and "  " not in words:
                self._put_gaps(line, start, apart)
            elif mono or apart or len(words) < _FEWEST_TYPICAL or face.is_wider_than_usual(ems - wider, len(words)):
                self._find_gaps(line, start)
            if not line.gaps and len(words) >= _FEWEST_TYPICAL:
                face.ems += ems
                face.characters += len(words)
        return line

    def _look(self, words: str, start: int, ends: tuple[int, int] | None) -> tuple[float, bool, bool, _Face]:
        """Size, bold, monospaced: those of its middle, and unless the line is of one piece those of its ends."""
        middle = len(words) // 2
        if words[middle] == " ":
            # What PDFium puts between words has no font.
            middle -= 1
        at = self._index(start + middle)
        face, size = self._face(at), self._size(at)
        if ends is None:
            return size or 1.0, face.bold, face.mono, face
        faces = [self._face(end) for end in ends]
        sizes = Counter((size, *[self._size(end) for end in ends]))
        return (
            sizes.most_common(1)[0][0] or 1.0,
            face.bold and all(end.bold for end in faces),
            face.mono and all(end.mono for end in faces),
            face,
        )

    def _pieces_apart(self, pieces: int, least: float) -> list[tuple[float, float]]:
        """Gaps of `least` points between the pieces of the line whose pieces were counted last: right end, left end."""
        apart = []
        before = float("inf")
        for piece in range(pieces):
            pdfium.FPDFText_GetRect(self._page, piece, self._x, self._top, self._y, self._bottom)
            if self._x.value - before > least:
                apart.append((before, self._x.value))
            before = self._y.value
        return apart

    def _put_gaps(self, line: Line, start: int, apart: list[tuple[float, float]]) -> None:
        """Put a tab where each gap between two pieces is: words stand from left to right, so halving finds it."""
        words = line.text
        starts = [space.end() for space in _SPACES.finditer(words)]
        parts: list[str] = []
        begun = 0
        for gap in apart:
            middle = (gap[0] + gap[1]) / 2
            place = bisect_left(starts, middle, key=lambda at: self._edges(self._index(start + at))[0])
            if place < len(starts) and starts[place] > begun:
                parts.append(words[begun : starts[place]].rstrip() + "\t")
                line.gaps.append(gap)
                begun = starts[place]
        if parts:
            line.text = "".join(parts) + words[begun:]

    def _find_gaps(self, line: Line, start: int) -> None:
        """Put a tab where a gap is too wide for a space; in code, the spaces that fit in."""
        words = line.text
        parts: list[str] = []
        begun = 0
        for space in _SPACES.finditer(words):
            before, after = space.span()
            _, right = self._edges(self._index(start + before - 1))
            left, _ = self._edges(self._index(start + after))
            gap = left - right
            if gap <= _CELL_JUMP * line.size:
                continue
            if line.mono:
                blanks = min(80, max(after - before, round(gap / (_MONO_ADVANCE * line.size))))
                parts.append(words[begun:before] + " " * (blanks - 1))
                begun = after - 1
            elif gap > _CELL_GAP * line.size or self._is_jump(start + before):
                parts.append(words[begun:before] + "\t")
                line.gaps.append((right, left))
                begun = after
        widths = [left - right for right, left in line.gaps]
        if len(widths) >= _FEWEST_STRETCHED and max(widths) - min(widths) < _EVEN * line.size:
            # A line of few words that was stretched over the width of the page.
            line.gaps = []
        elif parts:
            line.text = "".join(parts) + words[begun:]

    def _is_jump(self, at: int) -> bool:
        """Whether the space here stands for a jump to another place, as the file has no character there."""
        return bool(pdfium.FPDFText_IsGenerated(self._page, self._index(at)) == 1)

    def _index(self, at: int) -> int:
        if self._direct:
            return at
        index = int(pdfium.FPDFText_GetCharIndexFromTextIndex(self._page, at))
        return index if index >= 0 else at

    def _edges(self, index: int) -> tuple[float, float]:
        """Left and right end of a character in points; those of the one before where PDFium does not know."""
        box = self._box
        pdfium.FPDFText_GetLooseCharBox(self._page, index, box)
        return box.left, box.right

    def _origin(self, index: int) -> tuple[float, float]:
        if not pdfium.FPDFText_GetCharOrigin(self._page, index, self._x, self._y):
            return 0.0, 0.0
        return self._x.value, self._y.value

    def _size(self, index: int) -> float:
        """The size as it looks: that of the font times the scale of the text matrix, to half a point; 0 if unknown."""
        size = float(pdfium.FPDFText_GetFontSize(self._page, index))
        if pdfium.FPDFText_GetMatrix(self._page, index, self._matrix):
            scale = (self._matrix.c**2 + self._matrix.d**2) ** 0.5
            size *= scale or 1.0
        return round(2 * size) / 2 if 0 < size < 10_000 else 0.0

    def _face(self, index: int) -> _Face:
        self._name.value = b""
        self._flags.value = 0
        pdfium.FPDFText_GetFontInfo(self._page, index, self._name, len(self._name), self._flags)
        name, flags = self._name.value, self._flags.value
        face = self._faces.get((name, flags))
        if face is None:
            if len(self._faces) > _MAX_FACES:
                self._faces.clear()
            face = _Face(
                bold=bool(flags & _FORCE_BOLD) or bool(_BOLD_NAME.search(name)),
                mono=bool(flags & _FIXED_PITCH) or bool(_MONO_NAME.search(name)),
            )
            self._faces[name, flags] = face
        return face
