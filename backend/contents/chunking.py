"""Blocks to chunks to write training examples from: whole sentences, one section where possible, within a budget."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

from tokenizers import Tokenizer

from backend.contents.blocks import Block
from backend.contents.sentences import split_sentences

_BATCH_PIECES = 256
_COUNT_AT_ONCE = 512
# A word longer than this is cut first: tokenizers are slow on it, and it is no word.
_LONGEST_WORD = 512
# A new section starts a new chunk once the current one is filled to this share.
_FULL_ENOUGH = 0.5


class TokenCounter(Protocol):
    """Counts the tokens of many texts at once, without special tokens; must be a pure function of each text."""

    def count_many(self, texts: list[str]) -> list[int]: ...


class HuggingFaceTokenCounter:
    """Counts with the tokenizer of a model (`tokenizer.json`), without torch."""

    def __init__(self, tokenizer_json: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_json))
        # The file may ask to cut or pad, which would count what is not in the text.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count_many(self, texts: list[str]) -> list[int]:
        return [
            len(encoding)
            for start in range(0, len(texts), _COUNT_AT_ONCE)
            for encoding in self._tokenizer.encode_batch_fast(
                texts[start : start + _COUNT_AT_ONCE], add_special_tokens=False
            )
        ]


class ApproximateTokenCounter:
    """An estimate for when no base model is chosen yet: 3.5 ASCII characters a token, other characters one token each.

    Measured against SmolLM2's tokenizer: 6 per cent above it on English prose with many figures, 3 below on French.
    """

    def count_many(self, texts: list[str]) -> list[int]:
        return [self._count(text) for text in texts]

    @staticmethod
    def _count(text: str) -> int:
        ascii_characters = len(text) if text.isascii() else sum(character < "\x80" for character in text)
        return -(-2 * ascii_characters // 7) + len(text) - ascii_characters


class ChunkMetadata(TypedDict):
    """Pages count from 1 and are None where the format has none; `headings` is the path to where the chunk starts."""

    page_start: int | None
    page_end: int | None
    headings: list[str]


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
    section. Headings stand in the content above their text. Raises `ValueError` unless 0 <= overlap < size.
    """
    if not 0 <= chunk_overlap_tokens < chunk_size_tokens:
        raise ValueError("chunk_overlap_tokens must be at least 0 and less than chunk_size_tokens")
    packer = _Packer(counter, chunk_size_tokens, chunk_overlap_tokens)
    for piece in _counted(_pieces(blocks, chunk_size_tokens), counter, chunk_size_tokens):
        yield from packer.add(piece)
    yield from packer.finish()


@dataclass(slots=True)
class _Piece:
    """What is never cut again: a sentence, heading, row or line, with what separates it from the text before it."""

    text: str
    separator: str
    page: int | None
    headings: tuple[str, ...]
    is_heading: bool
    tokens: int = 0


def _pieces(blocks: Iterable[Block], size: int) -> Iterator[_Piece]:
    path: list[tuple[int, str]] = []
    previous = ""
    for block in blocks:
        if block.kind == "heading":
            while path and path[-1][0] >= block.level:
                path.pop()
            path.append((block.level, " ".join(block.text.split())))
        headings = tuple(text for _, text in path)
        inner = "\n" if block.kind in {"table", "code"} else " "
        separator = "\n" if block.kind == previous == "list_item" else "\n\n"
        for text in _units(block):
            # A token is seldom more than some ten characters: what cannot fit is cut before it is counted.
            for part in _cut_at_words(text, size * 16):
                yield _Piece(part, separator, block.page, headings, block.kind == "heading")
                separator = inner
        previous = block.kind


def _units(block: Block) -> Iterator[str]:
    if block.kind in {"table", "code"}:
        yield from (line.rstrip() for line in block.text.split("\n") if line.strip())
    elif block.kind == "heading":
        yield " ".join(block.text.split())
    else:
        yield from split_sentences(block.text)


def _counted(pieces: Iterable[_Piece], counter: TokenCounter, size: int) -> Iterator[_Piece]:
    """Pieces with their token counts, counted in batches; those longer than a chunk are cut further."""
    batch: list[_Piece] = []
    for piece in pieces:
        batch.append(piece)
        if len(batch) >= _BATCH_PIECES:
            yield from _count_batch(batch, counter, size)
            batch = []
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
    words = list(_cut_words(piece.text))
    counts = counter.count_many([f" {word}" for word in words])
    held: list[str] = []
    total = 0
    separator = piece.separator
    for word, count in zip(words, counts, strict=True):
        if held and total + count > size:
            yield _Piece(" ".join(held), separator, piece.page, piece.headings, piece.is_heading, total)
            held, total, separator = [], 0, " "
        held.append(word)
        total += count
    if held:
        yield _Piece(" ".join(held), separator, piece.page, piece.headings, piece.is_heading, total)


def _cut_at_words(text: str, length: int) -> Iterator[str]:
    while len(text) > length:
        cut = text.rfind(" ", length // 2, length)
        cut = cut if cut > 0 else length
        yield text[:cut]
        text = text[cut:].lstrip()
    if text:
        yield text


def _cut_words(text: str) -> Iterator[str]:
    for word in text.split():
        yield from (word[start : start + _LONGEST_WORD] for start in range(0, len(word), _LONGEST_WORD))


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

    def add(self, piece: _Piece) -> Iterator[ChunkDraft]:
        new_section = piece.is_heading and any(not held.is_heading for held in self._held[self._repeated :])
        if new_section and self._tokens >= _FULL_ENOUGH * self._size:
            yield from self._emit()
        while self._held and self._tokens + piece.tokens > self._size:
            if len(self._held) == self._repeated:
                # Only repetition is held: new text comes before it.
                self._drop_first()
            else:
                yield from self._emit()
        # Repetition stays within a section.
        if self._repeated == len(self._held) and self._held and self._held[-1].headings != piece.headings:
            self._clear()
        self._held.append(piece)
        self._tokens += piece.tokens

    def finish(self) -> Iterator[ChunkDraft]:
        while len(self._held) > self._repeated:
            yield from self._emit()

    def _emit(self) -> Iterator[ChunkDraft]:
        """Give out the held pieces as a chunk, but for headings at its end, and keep its last sentences."""
        taken = list(self._held)
        carried: deque[_Piece] = deque()
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
            first, rest = self._halves(taken[0])
            self._held = [first, rest, *carried]
            self._recount()
            yield from self._emit_first()
            return
        yield self._draft(taken, content, tokens)
        self._keep(taken, list(carried))

    def _emit_first(self) -> Iterator[ChunkDraft]:
        """Give out the first held piece alone, cut until it fits."""
        self._repeated = 0
        while self._exact(self._held[0].text) > self._size and len(self._held[0].text) > 1:
            self._held[:1] = self._halves(self._held[0])
        first = self._held.pop(0)
        yield self._draft([first], first.text, self._exact(first.text))
        self._recount()

    def _halves(self, piece: _Piece) -> tuple[_Piece, _Piece]:
        text = piece.text
        middle = len(text) // 2
        cut = text.rfind(" ", 1, middle + 1)
        cut = cut if cut > 0 else max(1, middle)
        first = _Piece(text[:cut].rstrip(), piece.separator, piece.page, piece.headings, piece.is_heading)
        rest = _Piece(text[cut:].lstrip(), " ", piece.page, piece.headings, piece.is_heading)
        return first, rest

    def _draft(self, pieces: list[_Piece], content: str, tokens: int) -> ChunkDraft:
        pages = [piece.page for piece in pieces if piece.page is not None]
        draft = ChunkDraft(
            self._index,
            content,
            tokens,
            ChunkMetadata(
                page_start=min(pages) if pages else None,
                page_end=max(pages) if pages else None,
                headings=list(pieces[0].headings),
            ),
        )
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
        self._recount()
        while self._repeated and self._tokens > self._size:
            self._drop_first()

    def _drop_first(self) -> None:
        self._tokens -= self._held.pop(0).tokens
        self._repeated -= 1

    def _clear(self) -> None:
        self._held, self._tokens, self._repeated = [], 0, 0

    def _recount(self) -> None:
        for piece, tokens in zip(
            self._held, self._counter.count_many([p.separator + p.text for p in self._held]), strict=True
        ):
            piece.tokens = tokens
        self._tokens = sum(piece.tokens for piece in self._held)

    def _exact(self, content: str) -> int:
        return self._counter.count_many([content])[0]


def _content(pieces: Sequence[_Piece]) -> str:
    return "".join((piece.separator if index else "") + piece.text for index, piece in enumerate(pieces))
