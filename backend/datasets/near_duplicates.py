"""Finds examples that say nearly the same as an earlier one, and leaves alone those that one word tells apart."""

import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from backend.datasets import shingles
from backend.datasets.deciding_words import Facts, differ, facts_key
from backend.datasets.similar_texts import Prepared, SimilarTexts

THRESHOLD = 0.8
# Texts looked up and kept together; among them, all pairs may have to be compared.
_BATCH = 512
# Texts alike enough whose facts are compared with those of a new one, the most alike first.
_MOST_FACTS = 16


def normalised(question: str, answer: str) -> str:
    """The text of an example that is compared: 'question newline answer', NFKC, every white space one space.

    Case and punctuation stay, since they tell names and negations; they have no weight in the similarity itself.
    """
    return "\n".join(" ".join(unicodedata.normalize("NFKC", part).split()) for part in (question, answer))


def find(texts: Iterable[tuple[int, str]], *, threshold: float = THRESHOLD) -> dict[int, int]:
    """For each key whose text is nearly the same as that of an earlier kept one: the key of that earlier one.

    The first of several wins. `NearDuplicateIndex` says what nearly the same is; it takes texts as they come.
    """
    found: dict[int, int] = {}
    index = NearDuplicateIndex(threshold)
    keys: list[int] = []

    def rest() -> Iterable[str]:
        for key, text in texts:
            keys.append(key)
            yield text

    for batch in shingles.batches(rest(), most=_BATCH):
        firsts = index.add_many(keys[: len(batch)], batch)
        found.update((key, first) for key, first in zip(keys, firsts, strict=False) if first is not None)
        del keys[: len(batch)]
    return found


class NearDuplicateIndex:
    """Texts that are kept, each unless nearly the same as one before it.

    Two texts are nearly the same when the exact Jaccard similarity of their character 4-grams (see `shingles`)
    reaches the threshold and no number, unit, name, opposite or negation tells them apart (`deciding_words.differ`).
    The order of words, case, punctuation and repeats have no weight.

    Texts with other names are not even compared; so of two texts whose capitals differ, only those of the very same
    words are found. Where many texts resemble the new one, the key returned is that of any of them.

    About 200 bytes of memory per kept text, whatever its length, and at most 16 MB besides; the texts themselves go
    to a temporary file once 4 MB of them are held. Calls read that file, so they belong into a thread where others
    wait. Not safe for several threads at once.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self._kept = SimilarTexts(threshold, salt=facts_key)
        self._keys = array("q")

    def __len__(self) -> int:
        """How many texts are kept."""
        return len(self._kept)

    def add(self, key: int, text: str) -> int | None:
        """The key of the kept text that this one nearly repeats; None if it is kept itself."""
        return self.add_many([key], [text])[0]

    def add_many(self, keys: Sequence[int], texts: Sequence[str]) -> list[int | None]:
        """The same for several texts in their order; much faster than one by one."""
        if len(keys) != len(texts):
            raise ValueError(f"{len(keys)} keys for {len(texts)} texts")
        firsts: list[int | None] = []
        for batch in shingles.batches(texts, most=_BATCH):
            start = len(firsts)
            firsts += self._add(keys[start : start + len(batch)], batch)
        return firsts

    def _add(self, keys: Sequence[int], texts: Sequence[str]) -> list[int | None]:
        # Identical texts have the same fate; without them, a batch of copies is one text.
        distinct = {text: place for place, text in reversed(list(enumerate(texts)))}
        places = sorted(distinct.values())
        batch = self._kept.prepare([texts[place] for place in places])
        firsts = self._firsts(batch, [keys[place] for place in places])
        fate: dict[str, tuple[int, int | None]] = {
            texts[place]: (place, first) for place, first in zip(places, firsts, strict=True)
        }
        result: list[int | None] = []
        for place, text in enumerate(texts):
            original, first = fate[text]
            result.append(first if first is not None or place == original else keys[original])
        return result

    def _firsts(self, batch: Prepared, keys: list[int]) -> list[int | None]:
        before, within = self._kept.near(batch), self._kept.near_within(batch)
        fates: list[_Kept | None] = []
        for row, text in enumerate(batch.texts):
            alike = [_Kept(self._keys[at], self._kept.text(at)) for at, _ in before[row][:_MOST_FACTS]]
            # One that was dropped points to the text that it repeats, which may have gone unseen among many.
            alike += dict.fromkeys(fates[at] or _Kept(keys[at], batch.texts[at]) for at, _ in within[row])
            fates.append(self._fate(batch.shingles_of(row), text, alike[: 2 * _MOST_FACTS]) if alike else None)
        kept = [row for row, fate in enumerate(fates) if fate is None]
        self._kept.keep(batch, kept)
        self._keys.extend(keys[row] for row in kept)
        return [None if fate is None else fate.key for fate in fates]

    def _fate(self, own: shingles.Hashes, text: str, alike: Iterable["_Kept"]) -> "_Kept | None":
        facts = Facts(text)
        for kept in alike:
            similarity = shingles.jaccard(own, shingles.sets([kept.text])[0])
            if similarity >= self._kept.threshold and not differ(facts, kept.text):
                return kept
        return None


class _Kept(NamedTuple):
    """A kept text."""

    key: int
    text: str
