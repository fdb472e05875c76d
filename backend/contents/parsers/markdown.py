"""Markdown (CommonMark and tables) to blocks, in slices so that memory does not grow with the file."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from backend.contents.blocks import Block
from backend.contents.parsers.confinement import start_step
from backend.contents.parsers.decoding import read_lines
from backend.contents.parsers.limits import ExtractionLimits

_SLICE_CHARACTERS = 131_072
_LONGEST_SLICE = 1_048_576
_FRONT_MATTER_LINES = 200
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# Where a slice may start: a top-level heading or paragraph after a blank line.
_SLICE_START = re.compile(r"[^\s>|*+\d-]")
# An open comment takes the rest: were it to fail instead, each of a million would be searched to the end.
_TAG = re.compile(r"<!--(?:.*?-->|.*)|<[^<>]{0,2000}>", re.DOTALL)


def parse_markdown(source: Path, limits: ExtractionLimits) -> tuple[int | None, Iterable[Block]]:
    """Blocks of a Markdown file; it has no pages."""
    return None, _blocks(source, limits)


def _blocks(source: Path, limits: ExtractionLimits) -> Iterator[Block]:
    parser = MarkdownIt("commonmark").enable("table")
    for text in _slices(_without_front_matter(read_lines(source))):
        start_step(limits)
        yield from _Walker().walk(parser.parse(text))


def _without_front_matter(lines: Iterator[str]) -> Iterator[str]:
    """Metadata between two `---` lines at the very start is not text of the document."""
    first = next(lines, "")
    held = [first]
    if first.rstrip() == "---":
        for line in lines:
            held.append(line)
            if line.rstrip() in {"---", "..."}:
                held = []
                break
            if len(held) > _FRONT_MATTER_LINES:
                break
    yield from held
    yield from lines


def _slices(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    characters = 0
    fence = ""
    blank = False
    for line in lines:
        if characters > _LONGEST_SLICE or (
            characters > _SLICE_CHARACTERS and blank and not fence and _SLICE_START.match(line)
        ):
            yield "".join(held)
            held, characters, fence = [], 0, ""
        found = _FENCE.match(line)
        if found and not fence:
            fence = found[1]
        elif found and found[1].startswith(fence) and not line.strip(" `~\n"):
            fence = ""
        held.append(line)
        characters += len(line)
        blank = line.isspace()
    yield "".join(held)


class _Walker:
    """Turns a token stream into blocks; the state is what is open at this point of it."""

    def __init__(self) -> None:
        self.list_depth = 0
        self.marker = ""
        self.item: list[str] = []
        self.heading_level = 0
        self.in_cell = False
        self.row: list[str] = []
        self.rows: list[str] = []

    def walk(self, tokens: Sequence[Token]) -> Iterator[Block]:
        for token in tokens:
            self._open(token)
            yield from self._blocks_of(token)

    def _open(self, token: Token) -> None:
        match token.type:
            case "heading_open":
                self.heading_level = int(token.tag[1:])
            case "heading_close":
                self.heading_level = 0
            case "th_open" | "td_open":
                self.in_cell = True
            case "th_close" | "td_close":
                self.in_cell = False
            case "table_open":
                self.rows = []
            case "tr_open":
                self.row = []
            case "tr_close":
                self.rows.append(" | ".join(self.row))

    def _blocks_of(self, token: Token) -> Iterator[Block]:
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                # A nested list follows the text of its item.
                yield from self._end_item()
                self.list_depth += 1
            case "bullet_list_close" | "ordered_list_close":
                self.list_depth -= 1
            case "list_item_open":
                self.marker = f"{token.info}{token.markup} " if token.info else "- "
            case "list_item_close":
                yield from self._end_item()
            case "table_close":
                yield Block("table", "\n".join(self.rows))
            case "fence" | "code_block":
                yield from self._end_item()
                yield Block("code", token.content)
            case "html_block":
                yield Block("paragraph", _TAG.sub(" ", token.content))
            case "inline":
                yield from self._text(_inline(token))

    def _text(self, text: str) -> Iterator[Block]:
        if self.in_cell:
            self.row.append(text.replace("\n", " "))
        elif self.heading_level:
            yield Block("heading", text.replace("\n", " "), self.heading_level)
        elif self.list_depth:
            self.item.append(self.marker + text)
            self.marker = ""
        else:
            yield Block("paragraph", text)

    def _end_item(self) -> Iterator[Block]:
        if self.item:
            yield Block("list_item", "\n".join(self.item), min(self.list_depth, 6))
        self.item = []


def _inline(token: Token) -> str:
    parts: list[str] = []
    for child in token.children or ():
        match child.type:
            case "text" | "code_inline":
                parts.append(child.content)
            case "softbreak":
                parts.append(" ")
            case "hardbreak":
                parts.append("\n")
            case "image":
                parts.append(child.content)
            case "html_inline" if child.content.lower().startswith("<br"):
                parts.append("\n")
            case _:
                pass
    return "".join(parts).strip()
