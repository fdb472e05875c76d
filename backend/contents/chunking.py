"""Blocks to chunks to write training examples from: whole sentences, one section where possible, within a budget."""

import unicodedata
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

from backend.contents.blocks import Block
from backend.contents.sentences import sentences_of
from backend.contents.token_counting import ApproximateTokenCounter, HuggingFaceTokenCounter, TokenCounter

__all__ = ["ApproximateTokenCounter", "ChunkDraft", "ChunkMetadata", "HuggingFaceTokenCounter", "TokenCounter", "chunk"]

_BATCH_PIECES = 512
# A word longer than this is cut first: tokenizers are slow on it, and it is no word.
_LONGEST_WORD = 512
# A new section starts a new chunk once the current one is filled to this share.
_FULL_ENOUGH = 0.5
# A chunk that can hold no more ends at the best place behind this share of it.
_LEAST_FULL = 0.7


class ChunkMetadata(TypedDict):
    """Pages count from 1 and are None where the format has none; `headings` is the path to where the chunk starts.

    `page_starts` is there when the chunk spans pages: [offset in the content, page] where each page begins in it.
    `start_seconds` and `end_seconds` are there when it is speech: the times of the paragraphs that it is cut from.
    """

    page_start: int | None
    page_end: int | None
    headings: list[str]
    page_starts: NotRequired[list[list[int]]]
    start_seconds: NotRequired[float]
    end_seconds: NotRequired[float]


@dataclass(frozen=True, slots=True)
class ChunkDraft:
    """One chunk: `index` counts from 0, `token_count` is exact for `content`."""

    index: int
    content: str
    token_count: int
    metadata: ChunkMetadata


def chunk(
    blocks: Iterable[Block], counter: TokenCounter, *, chunk_size_tokens: int = 512, chunk_overlap_tokens: int = 50
) -> Iterator[ChunkDraft]:
    """Cut a document into chunks of at most `chunk_size_tokens`, streaming and deterministic.

    A chunk ends where a sentence, table row or line of code ends; a sentence longer than a chunk is cut between words.
    It begins with the last whole sentences of the chunk before, up to `chunk_overlap_tokens`, if those are of the same
    section. Headings stand in the content above their text. Where a full chunk ends within its last third depends on
    the text there, so an edit changes the chunks near it and seldom those far behind it.
    Raises `ValueError` unless 0 <= overlap < size.
    """
    if not 0 <= chunk_overlap_tokens < chunk_size_tokens:
        raise ValueError("chunk_overlap_tokens must be at least 0 and less than chunk_size_tokens")
    packer = _Packer(counter, chunk_size_tokens, chunk_overlap_tokens)
    for piece in _counted(_pieces(blocks, chunk_size_tokens), counter, chunk_size_tokens):
        if not packer.take(piece):
            yield from packer.make_room(piece)
    yield from packer.finish()


@dataclass(slots=True)
class _Piece:
    """What is never cut again: a sentence, heading, row or line, with what separates it from the text before it."""

    text: str
    separator: str
    page: int | None
    headings: tuple[str, ...]
    is_heading: bool
    seconds: tuple[float, float] | None = None
    tokens: int = 0


def _pieces(blocks: Iterable[Block], size: int) -> Iterator[_Piece]:
    path: list[tuple[int, str]] = []
    headings: tuple[str, ...] = ()
    previous = ""
    # A token is seldom more than some ten characters: what cannot fit is cut before it is counted.
    longest = size * 16
    for block in blocks:
        is_heading = block.kind == "heading"
        if is_heading:
            while path and path[-1][0] >= block.level:
                path.pop()
            path.append((block.level, " ".join(block.text.split())))
            headings = tuple(text for _, text in path)
        inner = "\n" if block.kind in {"table", "code"} else " "
        separator = "\n" if block.kind == previous == "list_item" else "\n\n"
        for text in _units(block):
            if len(text) <= longest:
                yield _Piece(text, separator, block.page, headings, is_heading, block.seconds)
            else:
                for glue, part in _fragments(text, longest):
                    glued = separator if glue is None else glue
                    yield _Piece(part, glued, block.page, headings, is_heading, block.seconds)
            separator = inner
        previous = block.kind


def _units(block: Block) -> Iterator[str]:
    if block.kind in {"table", "code"}:
        yield from (line.rstrip() for line in block.text.split("\n") if line.strip())
    elif block.kind == "heading":
        if text := " ".join(block.text.split()):
            yield text
    else:
        yield from sentences_of(block.text)


def _counted(pieces: Iterable[_Piece], counter: TokenCounter, size: int) -> Iterator[_Piece]:
    """Pieces with their token counts, counted in batches; those longer than a chunk are cut further."""
    batch: list[_Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if len(batch) >= _BATCH_PIECES or characters >= _BATCH_PIECES * _LONGEST_WORD:
            yield from _count_batch(batch, counter, size)
            batch, characters = [], 0
    yield from _count_batch(batch, counter, size)


def _count_batch(batch: Sequence[_Piece], counter: TokenCounter, size: int) -> Iterator[_Piece]:
    for piece, tokens in zip(batch, counter.count_many([p.separator + p.text for p in batch]), strict=True):
        piece.tokens = tokens
        if tokens <= size:
            yield piece
        else:
            yield from _fitting_parts(piece, counter, size)


def _fitting_parts(piece: _Piece, counter: TokenCounter, size: int) -> Iterator[_Piece]:
    """A piece that exceeds a chunk alone, cut between words so that each part fits; its parts keep their order."""
    words = [
        (" " if glue is None and number else glue or "", part)
        for number, word in enumerate(piece.text.split())
        for glue, part in (_fragments(word, _LONGEST_WORD) if len(word) > _LONGEST_WORD else ((None, word),))
    ]
    held: list[str] = []
    total = 0
    separator = piece.separator
    for (glue, word), count in zip(words, counter.count_many([glue + word for glue, word in words]), strict=True):
        if held and total + count > size:
            yield replace(piece, text="".join(held), separator=separator, tokens=total)
            held, total, separator = [], 0, glue
        held.append(glue + word if held else word)
        total += count
    if held:
        yield replace(piece, text="".join(held), separator=separator, tokens=total)


def _fragments(text: str, length: int) -> Iterator[tuple[str | None, str]]:
    """Parts of at most `length` characters with what stood between each and the part before (None: it is the first)."""
    start = 0
    glue: str | None = None
    while len(text) - start > length:
        cut = _place_to_cut(text, start + length // 2, start + length)
        yield glue, text[start:cut]
        glue = " " if text[cut] == " " else ""
        start = cut + len(glue)
    if start < len(text):
        yield glue, text[start:]


def _place_to_cut(text: str, least: int, most: int) -> int:
    """The last space between two places, else the last place that does not part a letter from its marks."""
    cut = text.rfind(" ", least, most)
    if cut > 0:
        return cut
    cut = most
    while cut > least and unicodedata.combining(text[cut]):
        cut -= 1
    return cut if cut > least else most


class _Packer:
    """Fills chunks with pieces."""

    def __init__(self, counter: TokenCounter, size: int, overlap: int) -> None:
        self._counter = counter
        self._size = size
        self._overlap = overlap
        self._index = 0
        self._held: list[_Piece] = []
        self._tokens = 0
        # How many of the held pieces repeat the end of the chunk before.
        self._repeated = 0

    def take(self, piece: _Piece) -> bool:
        """Holds a piece that fits and goes on in the same section; all others need `make_room`."""
        if piece.is_heading or self._tokens + piece.tokens > self._size or len(self._held) == self._repeated:
            return False
        self._held.append(piece)
        self._tokens += piece.tokens
        return True

    def make_room(self, piece: _Piece) -> Iterator[ChunkDraft]:
        """Gives out the chunks that must end before this piece, and holds it."""
        new_section = piece.is_heading and any(not held.is_heading for held in self._held[self._repeated :])
        if new_section and self._tokens >= _FULL_ENOUGH * self._size:
            yield from self._emit(None)
        while self._held and self._tokens + piece.tokens > self._size:
            if len(self._held) == self._repeated:
                # Only repetition is held: new text comes before it.
                self._drop_first()
            else:
                yield from self._emit(piece)
        # Repetition stays within a section.
        if self._repeated == len(self._held) and self._held and self._held[-1].headings != piece.headings:
            self._clear()
        self._held.append(piece)
        self._tokens += piece.tokens

    def finish(self) -> Iterator[ChunkDraft]:
        while len(self._held) > self._repeated:
            yield from self._emit(None)

    def _emit(self, following: _Piece | None) -> Iterator[ChunkDraft]:
        """Give out the held pieces as a chunk, but for what the next is to begin with, and keep its last sentences.

        `following` is the piece that found no room; None: the chunk ends here in any case.
        """
        taken = list(self._held)
        carried: deque[_Piece] = deque()
        if following is not None:
            end = self._best_end(following)
            carried.extend(taken[end:])
            del taken[end:]
        while len(taken) > self._repeated + 1 and taken[-1].is_heading and any(not p.is_heading for p in taken):
            carried.appendleft(taken.pop())
        content = _content(taken)
        tokens = self._exact(content)
        # Counts of parts add up to that of the whole only nearly: the rest goes on to the next chunk.
        while tokens > self._size and len(taken) > 1:
            if self._repeated:
                taken.pop(0)
                self._repeated -= 1
            else:
                carried.appendleft(taken.pop())
            content = _content(taken)
            tokens = self._exact(content)
        if tokens > self._size and len(content) > 1:
            self._held = [*self._halves(taken[0]), *carried]
            yield self._first_alone()
            return
        yield self._draft(taken, content, tokens)
        self._keep(taken, list(carried))

    def _best_end(self, following: _Piece) -> int:
        """How many of the held pieces to give out: those up to the best end in the last third of a chunk.

        The end of a section is better than that of a paragraph, and that is better than another. Among equals the
        text that follows decides, not how full the chunk is: two versions of a document find the same ends again
        soon after they differ.
        """
        best, best_rank = len(self._held), (-1, -1)
        total = 0
        for end, piece in enumerate(self._held, 1):
            total += piece.tokens
            if end <= self._repeated or piece.is_heading or total < _LEAST_FULL * self._size:
                continue
            after = self._held[end] if end < len(self._held) else following
            kind = 2 if after.is_heading else int(after.separator == "\n\n")
            rank = (kind, zlib.crc32(after.text.encode(errors="replace")))
            if rank > best_rank:
                best, best_rank = end, rank
        return best

    def _first_alone(self) -> ChunkDraft:
        """The first held piece as a chunk of its own, cut until it fits."""
        self._repeated = 0
        while (tokens := self._exact(self._held[0].text)) > self._size and len(self._held[0].text) > 1:
            self._held[:1] = self._halves(self._held[0])
        first = self._held.pop(0)
        self._recount()
        return self._draft([first], first.text, tokens)

    def _halves(self, piece: _Piece) -> tuple[_Piece, _Piece]:
        text = piece.text
        middle = max(1, len(text) // 2)
        cut = _place_to_cut(text, 0, middle)
        glue = " " if text[cut] == " " else ""
        first = replace(piece, text=text[:cut].rstrip(), tokens=0)
        rest = replace(piece, text=text[cut:].lstrip(), separator=glue, tokens=0)
        return first, rest

    def _draft(self, pieces: list[_Piece], content: str, tokens: int) -> ChunkDraft:
        pages = [piece.page for piece in pieces if piece.page is not None]
        metadata = ChunkMetadata(
            page_start=min(pages) if pages else None,
            page_end=max(pages) if pages else None,
            headings=list(pieces[0].headings),
        )
        if metadata["page_start"] != metadata["page_end"]:
            metadata["page_starts"] = _page_starts(pieces)
        if times := [piece.seconds for piece in pieces if piece.seconds is not None]:
            metadata["start_seconds"] = min(start for start, _ in times)
            metadata["end_seconds"] = max(end for _, end in times)
        draft = ChunkDraft(self._index, content, tokens, metadata)
        self._index += 1
        return draft

    def _keep(self, given: list[_Piece], carried: list[_Piece]) -> None:
        """Hold what comes next: the overlap, if the text goes on in the same section, and what was carried over."""
        repeated: deque[_Piece] = deque()
        total = 0
        if not (carried and carried[0].is_heading):
            for piece in reversed(given[1:]):
                if piece.is_heading or piece.headings != given[-1].headings or total + piece.tokens > self._overlap:
                    break
                repeated.appendleft(piece)
                total += piece.tokens
        self._held = [*repeated, *carried]
        self._repeated = len(repeated)
        self._tokens = sum(piece.tokens for piece in self._held)
        while self._repeated and self._tokens > self._size:
            self._drop_first()

    def _drop_first(self) -> None:
        self._tokens -= self._held.pop(0).tokens
        self._repeated -= 1

    def _clear(self) -> None:
        self._held, self._tokens, self._repeated = [], 0, 0

    def _recount(self) -> None:
        counts = self._counter.count_many([piece.separator + piece.text for piece in self._held])
        for piece, tokens in zip(self._held, counts, strict=True):
            piece.tokens = tokens
        self._tokens = sum(counts)

    def _exact(self, content: str) -> int:
        return self._counter.count_many([content])[0]


def _content(pieces: Sequence[_Piece]) -> str:
    return pieces[0].text + "".join([piece.separator + piece.text for piece in pieces[1:]])


def _page_starts(pieces: Sequence[_Piece]) -> list[list[int]]:
    starts: list[list[int]] = []
    offset = 0
    for number, piece in enumerate(pieces):
        offset += len(piece.separator) if number else 0
        if piece.page is not None and (not starts or starts[-1][1] != piece.page):
            starts.append([offset, piece.page])
        offset += len(piece.text)
    return starts
