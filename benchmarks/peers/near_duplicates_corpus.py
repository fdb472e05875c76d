"""Question-and-answer texts with the lengths of natural ones, and near copies at a known exact Jaccard similarity."""

import random
from dataclasses import dataclass
from itertools import accumulate

from backend.datasets.deciding_words import differ
from benchmarks.peers.near_duplicates import shingles

_SYLLABLES = [first + vowel + last for first in "bcdfglmnprstv" for vowel in "aeiou" for last in ("", "n", "r", "s")]
BINS = (0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts in the order in which they come; `copies` is row: (row of the original, exact Jaccard similarity)."""

    texts: list[str]
    copies: dict[int, tuple[int, float]]
    # Rows that are another row with one number changed: not duplicates.
    renumbered: list[int]


def corpus(count: int, copies: int, renumbered: int, seed: int = 11) -> Corpus:
    """`count` texts, of which `copies` are near copies by changed words, evenly over similarities of 0.72 to 1."""
    rng = random.Random(seed)
    vocabulary = _vocabulary(rng)
    # Zipf's law, as cumulative weights.
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(vocabulary))))
    originals = [_text(rng, vocabulary, weights) for _ in range(count - copies - renumbered)]
    texts = list(originals)
    # None has two copies, so that each copy has exactly one earlier text to be found by.
    rows = rng.sample(range(len(originals)), copies + renumbered)
    planted = [
        (row, _copy(rng, originals[row], vocabulary, 0.72 + 0.27 * number / copies))
        for number, row in enumerate(rows[:copies])
    ]
    changed = [(row, f"{originals[row]} {rng.randrange(1000, 9999)}") for row in rows[copies:]]
    for row, text in changed:
        texts[row] = f"{originals[row]} {rng.randrange(100, 999)}"
        planted.append((row, text))
    rng.shuffle(planted)
    found: dict[int, tuple[int, float]] = {}
    others: list[int] = []
    is_renumbered = {row for row, _ in changed}
    for row, text in planted:
        if row in is_renumbered:
            others.append(len(texts))
        else:
            one, other = shingles(texts[row]), shingles(text)
            found[len(texts)] = row, len(one & other) / len(one | other)
        texts.append(text)
    return Corpus(texts, found, others)


def _vocabulary(rng: random.Random) -> list[str]:
    words: set[str] = set()
    while len(words) < 20_000:
        word = "".join(rng.choices(_SYLLABLES, k=rng.choice((1, 2, 2, 3, 3, 4))))
        # Words such as 'non' and 'bar' tell texts apart by themselves: what is planted must be a near duplicate.
        if not differ("the", f"the {word}"):
            words.add(word)
    # Sorted twice: a set's own order is another in every process.
    return sorted(sorted(words), key=lambda word: (len(word) + rng.random() * 6, word))


def _text(rng: random.Random, vocabulary: list[str], weights: list[float]) -> str:
    """A question of 6 to 20 words and an answer, mostly of 5 to 60, at times of 200."""
    answer = min(max(int(rng.lognormvariate(3.0, 0.7)), 3), 200)
    return " ".join(rng.choices(vocabulary, cum_weights=weights, k=rng.randint(6, 20) + answer))


def _copy(rng: random.Random, text: str, vocabulary: list[str], similarity: float) -> str:
    """The text with words replaced, one after the other, until it is no more alike than `similarity`."""
    words = text.split()
    own = shingles(text)
    for place in rng.sample(range(len(words)), len(words)):
        words[place] = rng.choice(vocabulary)
        other = shingles(" ".join(words))
        if len(own & other) / len(own | other) <= similarity + 0.02:
            break
    return " ".join(words)
