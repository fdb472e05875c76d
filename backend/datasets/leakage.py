"""Measures how much of the held-out split the training split gives away."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from backend.datasets import shingles
from backend.datasets.similar_texts import SimilarTexts

THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Leakage:
    """What a held-out split has in common with the training split.

    `leaked` examples have a training example at a Jaccard similarity of at least `threshold`; `same_question` ones
    have their very question there, whatever the answer. `pairs` are the most alike: (held-out key, key of its
    nearest training example, similarity), each held-out example once.
    """

    held_out: int
    leaked: int
    same_question: int
    threshold: float
    pairs: list[tuple[int, int, float]]

    @property
    def share(self) -> float:
        """Leaked over held out, 0 to 1; 0 where nothing is held out."""
        return self.leaked / self.held_out if self.held_out else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "held_out": self.held_out,
            "leaked": self.leaked,
            "share": round(self.share, 4),
            "same_question": self.same_question,
            "threshold": self.threshold,
            "pairs": [
                {"held_out": held_out, "train": train, "similarity": round(similarity, 3)}
                for held_out, train, similarity in self.pairs
            ],
        }


def measure(
    train: Iterable[tuple[int, str]],
    held_out: Iterable[tuple[int, str]],
    *,
    threshold: float = THRESHOLD,
    most_pairs: int = 20,
) -> Leakage:
    """Looks for each held-out text's nearest training text. Both as (key, `near_duplicates.normalised` text).

    The similarity is exact, over the same shingles as for near duplicates. Numbers and names make no difference
    here: 'tank A' in training tells much about 'tank B'. Only the held-out texts are kept, about 800 bytes each
    (their texts in a temporary file from 4 MB on); `train` is gone through once. Candidates come by MinHash: of
    pairs just at 0.5, 2 in 100 are not seen; above 0.6, 1 in 10,000.
    """
    index = SimilarTexts(threshold)
    keys: list[int] = []
    asking: dict[bytes, list[int]] = defaultdict(list)
    for batch_keys, texts in _batches(held_out):
        for row, question in enumerate(_questions(texts), start=len(keys)):
            asking[question].append(row)
        keys += batch_keys
        index.keep(index.prepare(texts))
    asking.pop(b"", None)
    nearest: dict[int, tuple[float, int]] = {}
    asked: set[int] = set()
    for batch_keys, texts in _batches(train) if keys else ():
        for question in _questions(texts):
            asked.update(asking.pop(question, ()))
        for key, found in zip(batch_keys, index.near(index.prepare(texts)), strict=True):
            for row, similarity in found:
                if row not in nearest or similarity > nearest[row][0]:
                    nearest[row] = similarity, key
    ranked = sorted(nearest, key=lambda row: (-nearest[row][0], row))[:most_pairs]
    pairs = [(keys[row], nearest[row][1], nearest[row][0]) for row in ranked]
    return Leakage(len(keys), len(nearest), len(asked), threshold, pairs)


def _questions(texts: list[str]) -> list[bytes]:
    return shingles.word_keys([text.partition("\n")[0] for text in texts])


def _batches(texts: Iterable[tuple[int, str]]) -> Iterator[tuple[list[int], list[str]]]:
    keys: list[int] = []

    def rest() -> Iterator[str]:
        for key, text in texts:
            keys.append(key)
            yield text

    for batch in shingles.batches(rest()):
        batch_keys = keys[: len(batch)]
        del keys[: len(batch)]
        yield batch_keys, batch
