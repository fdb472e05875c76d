"""Find a model's quote in its chunk, and give back the chunk's own characters."""

import re
import unicodedata
from functools import lru_cache

from backend.datasets.strategies.injection_marks import HIDDEN
from backend.datasets.strategies.language import words

# A quote of fewer words proves nothing; in scripts without blanks, of fewer characters.
SHORTEST_QUOTE_WORDS, SHORTEST_QUOTE_CHARACTERS = 3, 8
_QUOTES = re.compile("[\"'“”„‟‘’‚‛«»‹›`´]")
_DASHES = re.compile("[‐‑‒–—―−]")


def find_quote(quote: str, text: str) -> str | None:
    """The place of `text` that says `quote`, verbatim, or None.

    White space, case, ligatures, hidden characters and the kinds of quotation marks and dashes make no difference; a
    mark of omission or a full stop that the model put at an end does not either.
    """
    wanted, _ = _normalised(quote)
    wanted = wanted.strip(" '.…-")
    if len(words(quote)) < SHORTEST_QUOTE_WORDS and len(wanted.encode()) < 2 * SHORTEST_QUOTE_CHARACTERS:
        return None
    if not wanted or len(words(quote)) < SHORTEST_QUOTE_WORDS and wanted.isascii():
        return None
    plain, places = _normalised(text)
    start = _at_word(wanted, plain)
    if start < 0:
        return None
    first, last = places[start], places[start + len(wanted) - 1]
    end = last + 1
    while end < len(text) and text[end] in ".!?…\"'”’»)" and _says(quote, text[end]):
        end += 1
    return text[first:end].strip()


def _says(quote: str, character: str) -> bool:
    """Whether the quote also ended with the character, so that its full stop is kept."""
    return _normalised(character)[0] in _normalised(quote.rstrip()[-3:])[0]


def _at_word(wanted: str, plain: str) -> int:
    """Where the quote stands as whole words: '8 litres' is no quote of '1.8 litres'."""
    at = plain.find(wanted)
    while at >= 0:
        before, after = plain[max(0, at - 2) : at], plain[at + len(wanted) : at + len(wanted) + 1]
        cut = before[-1:].isalnum() and wanted[0].isalnum() or after.isalnum() and wanted[-1].isalnum()
        decimals = wanted[0].isdigit() and re.fullmatch(r"\d[.,]", before)
        if not decimals and (not cut or not wanted.isascii()):
            return at
        at = plain.find(wanted, at + 1)
    return -1


@lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    return _DASHES.sub("-", _QUOTES.sub("'", unicodedata.normalize("NFKC", character).casefold()))


# All quotes of a chunk are looked for in the same text.
@lru_cache(maxsize=64)
def _normalised(text: str) -> tuple[str, list[int]]:
    """The text for comparing, and for each of its characters its place in the original."""
    characters: list[str] = []
    places: list[int] = []
    for at, character in enumerate(HIDDEN.sub(lambda match: "\0" * len(match.group()), text)):
        if character == "\0":
            continue
        folded = _folded(character)
        for one in folded:
            if one.isspace():
                if not characters or characters[-1] == " ":
                    continue
                one = " "
            characters.append(one)
            places.append(at)
    return "".join(characters), places
