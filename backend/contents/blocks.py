"""The text of a document as blocks in reading order, and the JSON-lines form in which it is stored and streamed."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, Self, cast, get_args

BlockKind = Literal["heading", "paragraph", "list_item", "table", "code"]

FORMAT_NAME = "finetuneflow.document"
FORMAT_VERSION = 1
# The first line is padded to this length, so that a writer can fill in the counts when it has reached the end.
HEADER_BYTES = 256
_KINDS = frozenset(get_args(BlockKind))


@dataclass(frozen=True, slots=True)
class Block:
    """One unit of layout.

    `level` is 1 to 6 for a heading, the depth from 1 for a list item, else 0. `page` counts from 1 and is None where
    the format has no pages. Rows of a table and lines of code are separated by line feeds, cells by ` | `. `seconds`:
    from when to when it is said, where it is speech.
    """

    kind: BlockKind
    text: str
    level: int = 0
    page: int | None = None
    seconds: tuple[float, float] | None = None

    def to_line(self) -> bytes:
        fields: dict[str, Any] = {"kind": self.kind, "text": self.text}
        if self.level:
            fields["level"] = self.level
        if self.page is not None:
            fields["page"] = self.page
        if self.seconds is not None:
            fields["seconds"] = self.seconds
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Read one line; raises `ValueError` if it is not a block."""
        fields = _object(line)
        kind, text, level, page = fields.get("kind"), fields.get("text"), fields.get("level", 0), fields.get("page")
        if kind not in _KINDS or not isinstance(text, str):
            raise ValueError("A block needs a known kind and a text")
        if not isinstance(level, int) or not 0 <= level <= 99 or not (page is None or isinstance(page, int)):
            raise ValueError("The level and page of a block are integers")
        return cls(cast(BlockKind, kind), text, level, page, _seconds(fields.get("seconds")))


@dataclass(frozen=True, slots=True)
class DocumentSummary:
    """What the first line of a stored document says; `pages` is None where the format has no pages."""

    pages: int | None
    character_count: int
    block_count: int

    def to_line(self) -> bytes:
        """The header, padded with spaces to exactly `HEADER_BYTES`."""
        fields = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "pages": self.pages,
            "character_count": self.character_count,
            "block_count": self.block_count,
        }
        return json.dumps(fields, separators=(",", ":")).encode().ljust(HEADER_BYTES - 1) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Read the header; raises `ValueError` if it is of another format or version."""
        fields = _object(line)
        if fields.get("format") != FORMAT_NAME or fields.get("version") != FORMAT_VERSION:
            raise ValueError(f"Not a {FORMAT_NAME} of version {FORMAT_VERSION}")
        pages, characters, blocks = fields.get("pages"), fields.get("character_count"), fields.get("block_count")
        if (
            not isinstance(characters, int)
            or not isinstance(blocks, int)
            or not (pages is None or isinstance(pages, int))
        ):
            raise ValueError("The counts of a document are integers")
        return cls(pages, characters, blocks)


@dataclass(frozen=True, slots=True)
class ExtractedDocument:
    """A whole document in memory; `character_count` is the length of all block texts together."""

    pages: int | None
    character_count: int
    blocks: list[Block]

    def summary(self) -> DocumentSummary:
        return DocumentSummary(self.pages, self.character_count, len(self.blocks))

    def to_lines(self) -> Iterator[bytes]:
        """The stored form, a line at a time: the header, then one JSON object a block."""
        yield self.summary().to_line()
        for block in self.blocks:
            yield block.to_line()

    def to_bytes(self) -> bytes:
        return b"".join(self.to_lines())

    @classmethod
    def from_lines(cls, lines: Iterable[bytes]) -> Self:
        """Read the stored form; raises `ValueError` if it is cut short or is something else."""
        iterator = iter(lines)
        summary = DocumentSummary.from_line(next(iterator, b""))
        blocks = [Block.from_line(line) for line in iterator]
        if len(blocks) != summary.block_count:
            raise ValueError(f"The document has {len(blocks)} blocks where its header says {summary.block_count}")
        return cls(summary.pages, summary.character_count, blocks)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Self:
        return cls.from_lines(stored.splitlines(keepends=True))


def read_blocks(file: BinaryIO) -> Iterator[Block]:
    """The blocks of a stored document one by one, without holding it in memory."""
    DocumentSummary.from_line(file.readline())
    for line in file:
        yield Block.from_line(line)


def _seconds(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value) or len(value) != 2:
        raise ValueError("The times of a block are two numbers")
    return float(value[0]), float(value[1])


def _object(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except RecursionError as error:
        raise ValueError("Nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError("A line of a stored document is a JSON object")
    return fields
