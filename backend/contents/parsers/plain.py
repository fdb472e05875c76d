"""Plain text to paragraphs, list items and headings, by its blank lines, its line lengths and its numbering."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from backend.contents.blocks import Block
from backend.contents.parsers.confinement import start_step
from backend.contents.parsers.decoding import read_lines
from backend.contents.parsers.limits import ExtractionLimits

_GROUP_LINES = 400
_GROUP_CHARACTERS = 65_536
_USUAL_WIDTH = 100
_FORM_FEED = "\f"
_READ_BYTES = 1024 * 1024
BULLET = re.compile(
    r"\s*(?:[\u2022\u2023\u25e6\u2043\u2219\u25aa\u25ab\u25cf\u25cb\u25a0\u25a1\uf0b7*+\u2013\u2014-]|\(?(?:\d{1,3}|[A-Za-z])[.)])\s+(?=\S)"
)
ENDS_SENTENCE = re.compile(r"[.!?:;\u2026\u3002][\"')\]\u00bb\u201d\u2019]*\s*\Z")
_HEADING = re.compile(
    r"(?:(?P<number>\d{1,2}(?:\.\d{1,2}){0,4})\.?|(?:chapter|chapitre|part|partie|section|annexe|appendix)\s+\w{1,6}\b[.:]?)"
    r"(?:\s+|\Z)(?=\w|\Z)",
    re.IGNORECASE,
)
_LONGEST_HEADING = 90


def parse_plain(source: Path, limits: ExtractionLimits) -> tuple[int | None, Iterable[Block]]:
    """Blocks of a text file; it has pages only if form feeds divide it."""
    pages = _count_pages(source)
    if pages is None or pages > limits.pages:
        return None, _blocks(read_lines(source), limits)
    return pages, _blocks_of_pages(source, limits)


def heading_level(text: str) -> int:
    """1 to 6 if the line reads as a heading on its own: capitals, a section number, "Chapter 3"; else 0."""
    if len(text) > _LONGEST_HEADING or ENDS_SENTENCE.search(text) or not any(c.isalpha() for c in text):
        return 0
    numbered = _HEADING.match(text)
    if numbered:
        number = numbered["number"]
        rest = text[numbered.end() :]
        if number is None:
            return 1
        return min(6, number.count(".") + 1) if rest[:1].isupper() else 0
    return 1 if text.isupper() and sum(c.isalpha() for c in text) > 3 else 0


def _count_pages(source: Path) -> int | None:
    with source.open("rb") as file:
        if not any(_FORM_FEED.encode() in block for block in iter(lambda: file.read(_READ_BYTES), b"")):
            return None
    page = last = 0
    for page, piece in _by_page(read_lines(source)):
        if not piece.isspace():
            # What only ends the file is no new page.
            last = page
    return last if page > 1 else None


def _by_page(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Each line, or piece of one, with the number of its page."""
    page = 1
    for line in lines:
        *before, rest = line.split(_FORM_FEED)
        for part in before:
            yield page, f"{part}\n"
            page += 1
        if rest:
            yield page, rest


def _blocks_of_pages(source: Path, limits: ExtractionLimits) -> Iterator[Block]:
    held: Block | None = None
    for page, lines in groupby(_by_page(read_lines(source)), key=itemgetter(0)):
        for found in _blocks((line for _, line in lines), limits):
            block = replace(found, page=page)
            if held is not None and held.page != page and _goes_on(held, block):
                held = replace(held, text=f"{held.text} {block.text}")
            else:
                if held is not None:
                    yield held
                held = block
    if held is not None:
        yield held


def _goes_on(block: Block, following: Block) -> bool:
    """Whether a sentence that the end of a page cuts goes on."""
    paragraphs = block.kind == following.kind == "paragraph" and len(block.text) < _GROUP_CHARACTERS
    return paragraphs and not ENDS_SENTENCE.search(block.text) and following.text[:1].islower()


def _blocks(lines: Iterable[str], limits: ExtractionLimits) -> Iterator[Block]:
    group: list[str] = []
    characters = 0
    whole = True
    for piece in lines:
        if whole and piece.isspace():
            yield from _paragraphs(group)
            group, characters = [], 0
            continue
        if whole:
            group.append(piece.rstrip("\n"))
        else:
            group[-1] += piece.rstrip("\n")
        whole = piece.endswith("\n")
        characters += len(piece)
        # Cut only between lines, unless one line alone is longer than any paragraph.
        if characters > _GROUP_CHARACTERS or len(group) >= _GROUP_LINES:
            rest = "" if whole else _cut_last_word(group)
            yield from _paragraphs(group)
            group, characters, whole = ([rest], len(rest), False) if rest else ([], 0, True)
            start_step(limits)
    yield from _paragraphs(group)


def _cut_last_word(group: list[str]) -> str:
    """Take what may be half of a word from the end of a line that goes on; nothing if the line has no space."""
    text, _, rest = group[-1].rpartition(" ")
    if text:
        group[-1] = text
    return rest if text else ""


def _paragraphs(group: list[str]) -> Iterator[Block]:
    """The paragraphs of lines that no blank line separates: a line that ends early, for no lack of room, ends one."""
    if not group:
        return
    if len(group) == 1 and not BULLET.match(group[0]):
        text = group[0].strip()
        level = heading_level(text)
        yield Block("heading", text, level) if level else Block("paragraph", text)
        return
    width = max(len(line.rstrip()) for line in group)
    started: list[str] = []
    for line in group:
        if started and _starts_paragraph(started[-1], line, width):
            yield _block(started)
            started = []
        started.append(line)
    yield _block(started)


def _starts_paragraph(previous: str, line: str, width: int) -> bool:
    if BULLET.match(line):
        return True
    if BULLET.match(previous) and line[:1].isspace():
        return False
    words = line.split(maxsplit=1)
    had_room = len(previous.rstrip()) + 1 + len(words[0] if words else "") <= min(width, _USUAL_WIDTH) - 2
    starts_anew = bool(words) and not words[0][0].islower()
    return had_room and starts_anew


def _block(lines: list[str]) -> Block:
    text = " ".join(line.strip() for line in lines)
    if BULLET.match(text):
        indentation = len(lines[0]) - len(lines[0].lstrip())
        return Block("list_item", text, min(6, 1 + indentation // 2))
    level = heading_level(text) if len(lines) == 1 else 0
    return Block("heading", text, level) if level else Block("paragraph", text)
