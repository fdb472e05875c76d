"""Lines of PDF pages to blocks: running headers dropped, paragraphs joined, headings, lists, tables and code found."""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from backend.contents.blocks import Block
from backend.contents.parsers.pdf_text import Line
from backend.contents.parsers.plain import BULLET, ENDS_SENTENCE

# A line is a running header or footer if its like stands at the same height on this many of the pages around.
_WINDOW_PAGES = 4
_EDGE_SHARE = 0.12
_HEIGHT_TOLERANCE = 3.0
_FEWEST_LINES = 5
_SHORTEST_HALF = 6
_APART = 1.8
_PAGE_NUMBER = re.compile(
    r"(?:page|p\.|seite|-|\u2013|\u2014|\|)?\s*(?:\d{1,5}|[ivxlc]{1,7})\s*(?:(?:/|of|sur|de|von)\s*\d{1,5}|-|\u2013|\u2014|\|)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+")
_MAY_LEAD = re.compile(r"([.\u2026\u00b7_])\s?\1")
_LEADER = re.compile(r"(?:\s?[.\u2026\u00b7_]){4,}\s*")
_NUMBERED_ITEM = re.compile(r"\A(\d{1,2})\t([^\t]+)\Z")
_LONGEST_BULLET = 5
_LARGER = 1.1
_LONGEST_HEADING = 160
_LONGEST_BOLD_HEADING = 110
_SECTION_NUMBER = re.compile(r"(?:\d{1,2}\.)*\d{1,2}\.?\s")
_USUAL_PITCH = 1.2
_INDENT = 0.8
_BUCKET_POINTS = 24.0


@dataclass(slots=True)
class Page:
    """Lines in reading order; `letters` are counted only as far as it takes to know that they are many."""

    number: int
    height: float
    lines: list[Line]
    has_objects: bool
    has_images: bool = False
    is_damaged: bool = False
    letters: int = 0


class Typography:
    """The body size, line pitch (in units of the size) and heading sizes, largest first, of a document."""

    def __init__(self) -> None:
        self.body_size = 10.0
        self.pitch = _USUAL_PITCH
        self.heading_sizes: list[float] = []
        self._sizes: Counter[float] = Counter()
        self._pitches: Counter[float] = Counter()
        self._levels: dict[float, int] = {}

    def learn(self, page: Page) -> None:
        """Learn from one more page: most characters are body text."""
        previous: Line | None = None
        for line in page.lines:
            self._sizes[line.size] += len(line.text)
            if previous is not None and previous.size == line.size and line.size > 0:
                pitch = round((previous.y - line.y) / line.size, 2)
                if 0.9 <= pitch <= 2.6:
                    self._pitches[pitch] += 1
            previous = line
        if not self._sizes:
            return
        self.body_size = self._sizes.most_common(1)[0][0]
        self.heading_sizes = sorted((size for size in self._sizes if size > self.body_size * _LARGER), reverse=True)
        if self._pitches:
            self.pitch = self._pitches.most_common(1)[0][0]
        self._levels.clear()

    def heading_level(self, size: float) -> int:
        """1 to 5 for a size above the body's, else 0."""
        if size <= self.body_size * _LARGER:
            return 0
        level = self._levels.get(size)
        if level is None:
            level = min(5, 1 + sum(larger > size for larger in self.heading_sizes))
            self._levels[size] = level
        return level


def lay_out(pages: Iterable[Page], typography: Typography) -> Iterator[Block]:
    """Blocks in reading order; a few pages are held at a time."""
    assembler = _Assembler(typography)
    for page in _without_furniture(pages):
        assembler.start_page(page)
        for line in page.lines:
            yield from assembler.add(line)
    yield from assembler.finish()


def _without_furniture(pages: Iterable[Page]) -> Iterator[Page]:
    """The pages without running headers, footers and page numbers, judged against the pages around each."""
    iterator = iter(pages)
    window: deque[tuple[Page, list[tuple[Line, frozenset[tuple[str, int]], float]]]] = deque()
    for page in islice(iterator, _WINDOW_PAGES + 1):
        window.append((page, _edge_lines(page)))
    at = 0
    while at < len(window):
        page, edges = window[at]
        others = [lines for index, (_, lines) in enumerate(window) if index != at]
        needed = 1 if len(window) <= 3 else 2
        dropped = {id(line) for line, keys, height in edges if _repeats(keys, height, others) >= needed}
        dropped |= {id(line) for line, _, _ in edges if _PAGE_NUMBER.fullmatch(line.text.strip())}
        page.lines = [line for line in page.lines if id(line) not in dropped]
        yield page
        following = next(iterator, None)
        if following is not None:
            window.append((following, _edge_lines(following)))
        if at == _WINDOW_PAGES:
            window.popleft()
        else:
            at += 1


def _edge_lines(page: Page) -> list[tuple[Line, frozenset[tuple[str, int]], float]]:
    """Lines near the top and bottom edge with what identifies them, and their height from that edge."""
    found = []
    edge = page.height * _EDGE_SHARE
    apart = _outermost_apart(page)
    for line in page.lines:
        if edge <= line.y <= page.height - edge:
            continue
        keys = _keys(line.text, page.number)
        if any(line is other for other in apart):
            # Of "Chapter 3 | Pumps", only one half may stand on the next page.
            keys |= {(cell.strip(), -1) for cell in line.text.split("\t") if len(cell) >= _SHORTEST_HALF}
        found.append((line, keys, line.y if line.y < edge else line.y - page.height))
        if len(found) >= 40:
            break
    return found


def _outermost_apart(page: Page) -> list[Line]:
    """The first and the last line of cells on a page, if a gap divides it from the rest."""
    if len(page.lines) < _FEWEST_LINES:
        return []
    top, second, *_, last_but_one, bottom = sorted(page.lines, key=lambda line: -line.y)
    pairs = ((top, second), (bottom, last_but_one))
    return [line for line, near in pairs if line.gaps and abs(line.y - near.y) > _APART * line.size]


def _keys(text: str, page_number: int) -> frozenset[tuple[str, int]]:
    """The text itself, and the text without each number that counts up with the pages."""
    plain = " ".join(text.split())[:200]
    keys = {(plain, 0)}
    for number in islice(_NUMBER.finditer(plain), 4):
        if len(number.group()) < 7:
            keys.add((f"{plain[: number.start()]}\0{plain[number.end() :]}", int(number.group()) - page_number))
    return frozenset(keys)


def _repeats(
    keys: frozenset[tuple[str, int]], height: float, others: list[list[tuple[Line, frozenset[tuple[str, int]], float]]]
) -> int:
    return sum(
        any(keys & other_keys and abs(other - height) <= _HEIGHT_TOLERANCE for _, other_keys, other in lines)
        for lines in others
    )


class _Assembler:
    """Collects lines into the block they belong to, and gives the block out when another begins."""

    def __init__(self, typography: Typography) -> None:
        self._type = typography
        self._page = 1
        # Whether a page was turned since the last line: heights do not compare over it.
        self._turned = False
        self._right_edges: dict[int, float] = {}
        self._lines: list[Line] = []
        self._first_page = 1

    def start_page(self, page: Page) -> None:
        self._page = page.number
        self._turned = True
        edges: dict[int, float] = {}
        for line in page.lines:
            bucket = int(line.x0 // _BUCKET_POINTS)
            edges[bucket] = max(edges.get(bucket, 0.0), line.x1)
        self._right_edges = edges

    def add(self, line: Line) -> Iterator[Block]:
        if _MAY_LEAD.search(line.text):
            line.text = _LEADER.sub("\t", line.text)
        if "\t" in line.text:
            line.text = _without_item_gap(line.text)
        if self._lines and self._separates(self._lines[-1], line):
            yield from self._flush()
        if not self._lines:
            self._first_page = self._page
        self._lines.append(line)
        self._turned = False
        if len(self._lines) > 500:
            yield from self._flush()

    def finish(self) -> Iterator[Block]:
        yield from self._flush()

    def _separates(self, previous: Line, line: Line) -> bool:
        """Whether a new block begins at `line`."""
        if _is_row(previous) or _is_row(line):
            # Rows of one table stay together; a bullet whose text stands far from it is no row.
            together = _is_row(previous) and _is_row(line) and 0 < previous.bottom - line.y < 4 * line.size
            return self._turned or not together
        if previous.mono and line.mono:
            return self._turned or not 0 < previous.y - line.y < 3 * line.size
        if previous.mono != line.mono and (self._is_short(previous) or self._is_short(line)):
            return True
        if abs(previous.size - line.size) > 0.08 * previous.size:
            return True
        if previous.hyphenated:
            return False
        if BULLET.match(line.text) and (previous.y != line.y):
            return True
        if previous.bold != line.bold and (self._is_short(previous) or self._is_short(line)):
            return True
        return self._is_apart(previous, line)

    def _is_apart(self, previous: Line, line: Line) -> bool:
        gap = previous.y - line.y
        starts_anew = not line.text[:1].islower()
        ended = bool(ENDS_SENTENCE.search(previous.text))
        if self._turned or gap < -line.size or gap > 12 * line.size:
            # The next column or page: a sentence that is not over goes on there.
            return ended or starts_anew or self._is_heading_size(line)
        if gap > line.size * self._type.pitch * 1.25 + 0.5:
            return True
        if self._is_heading_size(line):
            return bool(_SECTION_NUMBER.match(line.text))
        if line.x0 > previous.x0 + _INDENT * line.size:
            # Deeper than the line before: a hanging list item, else the first line of a paragraph.
            return not (BULLET.match(self._lines[0].text) or len(self._lines) == 1 and not ended)
        if line.x0 < previous.x0 - _INDENT * line.size:
            return len(self._lines) > 1 or bool(BULLET.match(self._lines[0].text))
        return starts_anew and self._had_room(previous, line)

    def _had_room(self, previous: Line, line: Line) -> bool:
        """Whether the first word of `line` would have fitted after `previous`: then the line was ended on purpose."""
        bucket = int(previous.x0 // _BUCKET_POINTS)
        edge = max(self._right_edges.get(near, 0.0) for near in (bucket - 1, bucket, bucket + 1))
        width = (previous.x1 - previous.x0) / max(1, len(previous.text))
        return previous.x1 + (len(line.text.split(maxsplit=1)[0]) + 2) * width < edge

    def _is_short(self, line: Line) -> bool:
        bucket = int(line.x0 // _BUCKET_POINTS)
        return line.x1 < 0.85 * self._right_edges.get(bucket, line.x1) or len(line.text) < _LONGEST_BOLD_HEADING / 2

    def _is_heading_size(self, line: Line) -> bool:
        return self._type.heading_level(line.size) > 0

    def _flush(self) -> Iterator[Block]:
        lines, self._lines = self._lines, []
        if not lines:
            return
        page = self._first_page
        if all(_is_row(line) for line in lines):
            rows = [" | ".join(cell.strip() for cell in line.text.split("\t") if cell.strip()) for line in lines]
            yield Block("table", "\n".join(rows), page=page)
            return
        if all(line.mono for line in lines) and (len(lines) > 1 or not ENDS_SENTENCE.search(lines[0].text)):
            left = min(line.x0 for line in lines)
            width = max(1.0, lines[0].size * 0.6)
            code = [" " * min(40, round((line.x0 - left) / width)) + line.text for line in lines]
            yield Block("code", "\n".join(code), page=page)
            return
        text = _joined(lines)
        level = self._level(lines, text)
        if level:
            yield Block("heading", text, level, page)
        elif BULLET.match(text):
            yield Block("list_item", text, 1, page)
        else:
            yield Block("paragraph", text, page=page)

    def _level(self, lines: list[Line], text: str) -> int:
        if not any(character.isalpha() for character in text):
            return 0
        level = self._type.heading_level(lines[0].size)
        if level and len(text) <= _LONGEST_HEADING and not text.rstrip().endswith((".", ",", ";", "\u2026")):
            return level
        bold = all(line.bold for line in lines) and lines[0].size >= 0.9 * self._type.body_size
        if bold and len(text) <= _LONGEST_BOLD_HEADING and not ENDS_SENTENCE.search(text) and not text[0].islower():
            return min(6, 1 + len(self._type.heading_sizes[:5]))
        return 0


def _is_row(line: Line) -> bool:
    return "\t" in line.text


def _without_item_gap(text: str) -> str:
    """The gap between a bullet or an item's number and its text makes no cells; a bare number gets its full stop."""
    text = _NUMBERED_ITEM.sub(r"\1. \2", text)
    first, _, rest = text.partition("\t")
    if len(first) <= _LONGEST_BULLET and BULLET.match(f"{first} {rest}"):
        return f"{first} {rest}"
    return text


def _joined(lines: list[Line]) -> str:
    """One text of several lines; hyphenation at line ends is undone, but not before a capital or a figure."""
    parts: list[str] = []
    for index, line in enumerate(lines):
        text = " ".join(line.text.split())
        if not line.hyphenated or index == len(lines) - 1:
            parts.append(text if not line.hyphenated else f"{text}-")
            parts.append(" ")
        else:
            following = lines[index + 1].text[:1]
            parts.append(text if following.islower() else f"{text}-")
    return "".join(parts).strip()
