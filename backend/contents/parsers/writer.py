"""Writes blocks in their stored form as they are found, cleaned and within the limits."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO

from backend.contents.blocks import Block, DocumentSummary
from backend.contents.parsers.failures import DocumentTooLarge, EmptyDocument
from backend.contents.parsers.limits import ExtractionLimits

_LONGEST_BLOCK = 32_768
# Control characters, soft hyphens, zero-width marks, byte-order marks, surrogates and non-characters.
_DROPPED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
_LIGATURES = re.compile("[\ufb00-\ufb06]")
_BLANKS = re.compile("[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_EDGES = re.compile(r" ?\n ?")


def write_document(
    file: BinaryIO, blocks: Iterable[Block], pages: int | None, limits: ExtractionLimits
) -> DocumentSummary:
    """Write the header and every block; raises `EmptyDocument` if there is none, `DocumentTooLarge` past a limit."""
    file.write(DocumentSummary(pages, 0, 0).to_line())
    characters = count = 0
    for block in blocks:
        for piece in _pieces(block):
            characters += len(piece.text)
            count += 1
            if characters > limits.characters:
                raise DocumentTooLarge(
                    f"The document holds more than {limits.characters:,} characters of text. "
                    "Split it into smaller documents and upload those."
                )
            if count > limits.blocks:
                raise DocumentTooLarge
            file.write(piece.to_line())
    if not count:
        raise EmptyDocument
    summary = DocumentSummary(pages, characters, count)
    # An older, longer text may stand here.
    file.truncate()
    file.seek(0)
    file.write(summary.to_line())
    return summary


def clean(text: str, *, keep_blanks: bool = False) -> str:
    """Text without invisible characters and typographic ligatures, composed (NFC), white space collapsed.

    Line feeds stay. `keep_blanks` leaves the indentation and alignment of code alone.
    """
    if text.isascii() and text.isprintable():
        # Most lines: nothing to compose or to drop.
        if keep_blanks:
            return text.rstrip()
        return _BLANKS.sub(" ", text).strip() if "  " in text else text.strip()
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0b", "\n").replace("\x0c", "\n")
    text = _DROPPED.sub("", text)
    text = _LIGATURES.sub(lambda ligature: unicodedata.normalize("NFKC", ligature.group()), text)
    text = unicodedata.normalize("NFC", text)
    if keep_blanks:
        return text.replace("\t", "    ").strip("\n").rstrip()
    return _EDGES.sub("\n", _BLANKS.sub(" ", text)).strip()


def _pieces(block: Block) -> Iterator[Block]:
    """The cleaned block, cut at white space where it is longer than one line of storage should be."""
    text = clean(block.text, keep_blanks=block.kind == "code")
    while len(text) > _LONGEST_BLOCK:
        cut = max(text.rfind(mark, _LONGEST_BLOCK // 2, _LONGEST_BLOCK) for mark in ("\n", " "))
        cut = cut if cut > 0 else _LONGEST_BLOCK
        yield replace(block, text=text[:cut])
        text = text[cut:].lstrip("\n" if block.kind == "code" else None)
    if text and not text.isspace():
        yield replace(block, text=text)
