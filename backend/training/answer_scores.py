"""Scores of short answers against expected ones, and how sure a difference of two models is."""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_RESAMPLES = 2000
_CONFIDENCE = 0.95
_ARTICLES = frozenset("a an the le la les l un une des du au aux d".split())
_APOSTROPHES = re.compile(r"['’ʼ`]")


def normalised(text: str) -> list[str]:
    """The words that count: lower case, without punctuation and articles.

    As in the SQuAD 1.1 evaluation (Rajpurkar et al. 2016, arXiv:1606.05250), with French beside English: articles of
    both languages go, and an apostrophe parts words, so that "l'eau" and "eau" are the same word. Accents stay.
    """
    parted = _APOSTROPHES.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    bare = "".join(sign for sign in parted if not unicodedata.category(sign).startswith("P"))
    return [word for word in bare.split() if word not in _ARTICLES]


def token_f1(answer: str, expected: str) -> float:
    """The harmonic mean of precision and recall over words, 0 to 1: 2 * shared / (words in both texts together).

    The formula is that of SQuAD 1.1; a text without words equals only another one without.
    """
    given, wanted = normalised(answer), normalised(expected)
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


def exact_match(answer: str, expected: str) -> bool:
    return normalised(answer) == normalised(expected)


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of tuned minus base, and the interval in which it lies with 95 % confidence."""

    mean: float
    low: float
    high: float


def paired_difference(
    base: Sequence[float], tuned: Sequence[float], weights: Sequence[float] | None = None, *, seed: int = 42
) -> Difference:
    """By the paired bootstrap: the same examples are drawn for both models, 2,000 times, with replacement.

    `weights`: how much each example counts (its tokens, for a loss a token). The same values give the same interval.
    """
    assert len(base) == len(tuned) > 0, "pairs are compared"
    weight = list(weights) if weights is not None else [1.0] * len(base)
    gains = [(after - before) * share for before, after, share in zip(base, tuned, weight, strict=True)]
    chance = random.Random(seed)
    places = range(len(gains))
    means = []
    for _ in range(_RESAMPLES):
        drawn = chance.choices(places, k=len(gains))
        means.append(sum(gains[place] for place in drawn) / sum(weight[place] for place in drawn))
    means.sort()
    cut = int(_RESAMPLES * (1 - _CONFIDENCE) / 2)
    return Difference(sum(gains) / sum(weight), means[cut], means[-cut - 1])
