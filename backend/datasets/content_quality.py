"""How good a training set chosen contents promise to make: a score from their length, variety, repeats and languages.

The score is the product of four factors from 0 to 1; from a number of characters alone it is the first one.

- length: n / (n + h), where h is the length at which a usage is half served (HALF_SERVED). 5,000 characters of
  customer support give 5000 / 13500 = 0.37.
- variety: v = distinct word trigrams / word trigrams, over windows of 2,000 words, because the ratio falls with length.
  The factor goes from 0.4 at v <= 0.5 to 1 at v >= 0.95, as ordinary prose has it.
- repeats: 1 - the share of characters in passages that say exactly or nearly the same as an earlier one.
- languages: 0.5 + 0.5 * the share of the passages in the most frequent language; 1 where none can be told.

Looked at are at most MOST_CHARACTERS, shared equally by the contents, each from its beginning.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Literal

from backend.contents import languages
from backend.contents.blocks import HEADER_BYTES, Block
from backend.contents.models import Content
from backend.datasets import near_duplicates
from backend.storage import BlobNotFound, Storage

UsageType = Literal["customer_support", "sales", "marketing", "technical", "legal", "medical", "generic"]
# Characters at which the length earns half of its points: fields with many terms and rules need more.
HALF_SERVED: Final[dict[UsageType, int]] = {
    "customer_support": 8_500,
    "sales": 8_500,
    "marketing": 7_500,
    "technical": 15_000,
    "legal": 20_000,
    "medical": 20_000,
    "generic": 10_000,
}
MOST_CHARACTERS = 2_000_000
_WINDOW_WORDS, _NGRAM = 2_000, 3
_FEWEST_VARIETY, _FULL_VARIETY, _LEAST_VARIETY_FACTOR = 0.5, 0.95, 0.4
# Shorter passages are headings and labels: they repeat by right.
_SHORTEST_PASSAGE = 40
_MOST_PASSAGES, _MOST_DETECTED = 5_000, 200
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found in the texts; shares are from 0 to 1."""

    characters_read: int
    passages: int
    variety: float
    exact_duplicates: int
    near_duplicates: int
    duplicate_share: float
    # Shares of the passages whose language could be told, the most frequent first.
    languages: dict[str, float]


def length_score(characters: int, usage: UsageType) -> float:
    """From 0 towards 1, unrounded."""
    return characters / (characters + HALF_SERVED[usage])


def score(characters: int, usage: UsageType, found: Judgement | None = None) -> float:
    """From 0 to 1, to two digits."""
    value = length_score(characters, usage)
    if found is not None:
        value *= variety_factor(found.variety) * (1 - found.duplicate_share) * language_factor(found.languages)
    return round(value, 2)


def variety_factor(variety: float) -> float:
    reached = (variety - _FEWEST_VARIETY) / (_FULL_VARIETY - _FEWEST_VARIETY)
    return _LEAST_VARIETY_FACTOR + (1 - _LEAST_VARIETY_FACTOR) * min(max(reached, 0.0), 1.0)


def language_factor(shares: dict[str, float]) -> float:
    return 0.5 + 0.5 * max(shares.values(), default=1.0)


async def passages_of(storage: Storage, contents: Sequence[Content]) -> list[str]:
    """The texts of the blocks of contents that have been read, within MOST_CHARACTERS in all."""
    readable = [content.text_key for content in contents if content.text_key is not None and content.kind == "raw_doc"]
    passages: list[str] = []
    for key in readable:
        left = MOST_CHARACTERS // len(readable)
        async with aclosing(_blocks(storage, key)) as blocks:
            async for block in blocks:
                passages.append(block.text[:left])
                left -= len(passages[-1])
                if left <= 0:
                    break
    return passages


def judge(passages: Sequence[str]) -> Judgement:
    """Judges texts in their order. Pure CPU, some seconds for MOST_CHARACTERS: call it in a thread."""
    long = [text for text in passages if len(text) >= _SHORTEST_PASSAGE][:_MOST_PASSAGES]
    firsts: dict[str, int] = {}
    exact = []
    for index, text in enumerate(long):
        key = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        if firsts.setdefault(key, index) != index:
            exact.append(index)
    others = sorted(firsts.values())
    near = near_duplicates.find((index, long[index]) for index in others)
    repeated = sum(len(long[index]) for index in [*exact, *near])
    return Judgement(
        characters_read=sum(len(text) for text in passages),
        passages=len(long),
        variety=round(_variety(passages), 3),
        exact_duplicates=len(exact),
        near_duplicates=len(near),
        duplicate_share=round(repeated / max(sum(map(len, long)), 1), 3),
        languages=_languages(long or passages),
    )


def _variety(passages: Sequence[str]) -> float:
    """Distinct trigrams of words over all of them, in windows of the same length; 1 for texts shorter than one."""
    words = [word for text in passages for word in _WORD.findall(text.casefold())]
    distinct = total = 0
    for start in range(0, len(words), _WINDOW_WORDS):
        window = words[start : start + _WINDOW_WORDS]
        ngrams = list(zip(*(window[at:] for at in range(_NGRAM)), strict=False))
        distinct, total = distinct + len(set(ngrams)), total + len(ngrams)
    return distinct / total if total else 1.0


def _languages(passages: Sequence[str]) -> dict[str, float]:
    step = max(len(passages) // _MOST_DETECTED, 1)
    found = Counter(code for text in passages[::step] if (code := languages.detect(text)) is not None)
    return {code: round(count / found.total(), 3) for code, count in found.most_common()}


async def _blocks(storage: Storage, key: str) -> AsyncGenerator[Block, None]:
    """The blocks of a stored text, as far as they are asked for. None for one that was deleted a moment ago."""
    try:
        parts = await storage.stream(key)
    except BlobNotFound:
        return
    rest, skipped = b"", False
    async for part in parts:
        rest += part
        if not skipped:
            if len(rest) < HEADER_BYTES:
                continue
            rest, skipped = rest[HEADER_BYTES:], True
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield Block.from_line(line)
