"""Finds the examples that give away a supplied evaluation set, so that its score stays a measure."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from backend.datasets import shingles
from backend.datasets.deciding_words import differ, lacks
from backend.datasets.near_duplicates import normalised
from backend.datasets.similar_texts import Prepared, SimilarTexts

Kind = Literal["same_question", "near_duplicate", "shared_run", "contained_question"]

SIMILARITY = 0.8
CONTAINMENT = 0.8
# The bounds of the length of a run in words, and how many references may share one before it counts as a phrase.
SHORTEST_RUN, LONGEST_RUN, MOST_REFERENCES = 8, 13, 10
# Questions are contained by their word trigrams; one of fewer than five words is in too many texts.
_GRAM = 3
_LEAST_GRAMS = 3

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Contamination:
    """Why an example is too close to the evaluation set: `reference` counts that set's rows from 0."""

    kind: Kind
    reference: int


class ReferenceSet:
    """An evaluation set, ready to be compared with many examples.

    An example is contaminated when, in this order,
    - `same_question`: its question is a reference's, but for case, punctuation and white space;
    - `near_duplicate`: its question, or its question and answer, have a Jaccard similarity of at least 0.8 with a
      reference's, and no number, name or negation tells them apart (as in `near_duplicates`);
    - `shared_run`: it has a run of N words in common with a reference. This is the n-gram overlap of GPT-3 (Brown et
      al. 2020, appendix C): N is the fifth percentile of the references' lengths in words, at least 8 and at most
      13; case and punctuation are ignored, and so are runs that more than 10 references share;
    - `contained_question`: at least 0.8 of the word trigrams of a reference's question, of five words or more, are
      in it, one of them no common phrase, and all its numbers and names with them. This is n-gram containment, as
      PaLM (Chowdhery et al. 2022) measures it with 0.7 of the 8-grams; trigrams, since questions are short.

    All of this compares words. A paraphrase with other words, a translation, or the same fact asked from its other
    end is not found; a stated zero means no overlap in wording, not that no fact is shared.
    """

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        references = list(rows)
        self._texts = [normalised(question, answer) for question, answer in references]
        self._questions = [text.partition("\n")[0] for text in self._texts]
        keys = (key for batch in shingles.batches(self._questions) for key in shingles.word_keys(batch))
        self._asking: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            self._asking.setdefault(key, row)
        self._asking.pop(b"", None)
        self._similar_texts = _similar(self._texts)
        self._similar_questions = _similar(self._questions)
        self._index_runs()
        self._index_questions()

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str]]) -> Self:
        """From the (question, answer) rows of an evaluation set; an answer may be empty."""
        return cls(rows)

    def __len__(self) -> int:
        return len(self._texts)

    def match(self, question: str, answer: str) -> Contamination | None:
        """The reference that this example is too close to, if there is one."""
        return self.match_many([(question, answer)])[0]

    def match_many(self, examples: Iterable[tuple[str, str]]) -> list[Contamination | None]:
        """The same for many examples; much faster than one by one."""
        found: list[Contamination | None] = []
        for batch in shingles.batches(normalised(question, answer) for question, answer in examples):
            found += self._match(batch)
        return found

    def _match(self, texts: Sequence[str]) -> list[Contamination | None]:
        found: list[Contamination | None] = [None] * len(texts)
        questions = [text.partition("\n")[0] for text in texts]
        for place, key in enumerate(shingles.word_keys(questions)):
            row = self._asking.get(key)
            if row is not None:
                found[place] = Contamination("same_question", row)
        checks: tuple[tuple[Kind, Iterator[tuple[int, int]]], ...] = (
            ("near_duplicate", self._near(self._similar_texts, texts)),
            ("near_duplicate", self._near(self._similar_questions, questions)),
            ("shared_run", self._sharing_runs(texts)),
            ("contained_question", self._containing(texts)),
        )
        for kind, pairs in checks:
            for place, row in pairs:
                if found[place] is None:
                    found[place] = Contamination(kind, row)
        return found

    def _near(self, similar: SimilarTexts, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        batch: Prepared = similar.prepare(texts)
        for place, rows in enumerate(similar.near(batch)):
            for row, _ in sorted(rows, key=lambda pair: (-pair[1], pair[0])):
                if not differ(similar.text(row), texts[place]):
                    yield place, row
                    break

    def _index_runs(self) -> None:
        hashes, offsets = _words(self._texts)
        lengths = np.diff(offsets)
        typical = int(np.percentile(lengths, 5)) if len(lengths) else 0
        self.run_words = min(max(typical, SHORTEST_RUN), LONGEST_RUN)
        grams, rows = _distinct(*shingles.runs(hashes, offsets, self.run_words))
        rare = _counts(grams) <= MOST_REFERENCES
        self._runs, self._run_rows = grams[rare], rows[rare]

    def _sharing_runs(self, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        grams, offsets = shingles.runs(*shingles.words(texts), self.run_words)
        yield from _joined(grams, offsets, self._runs, self._run_rows)

    def _index_questions(self) -> None:
        """Keeps for each question only its rarest trigrams: as many as cannot all be missing in a text that has it."""
        grams, rows = _distinct(*shingles.runs(*_words(self._questions), _GRAM))
        counts = _counts(grams)
        order = np.lexsort((grams, counts, rows))
        grams, rows, counts = grams[order], rows[order], counts[order]
        starts = np.searchsorted(rows, np.arange(len(self._questions) + 1))
        self._grams_of = {
            row: frozenset(grams[start:end].tolist())
            for row, (start, end) in enumerate(pairwise(starts.tolist()))
            if end - start >= _LEAST_GRAMS
        }
        chosen = [
            np.arange(starts[row], starts[row + 1] - math.ceil(CONTAINMENT * len(own)) + 1)
            for row, own in self._grams_of.items()
        ]
        places = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
        places = places[counts[places] <= MOST_REFERENCES]
        grams, rows = grams[places], rows[places]
        order = np.lexsort((rows, grams))
        self._rare_grams, self._rare_rows = grams[order], rows[order]

    def _containing(self, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        grams, offsets = shingles.runs(*shingles.words(texts), _GRAM)
        current, own = -1, frozenset[int]()
        for place, row in _joined(grams, offsets, self._rare_grams, self._rare_rows):
            if place != current:
                current, own = place, frozenset(grams[offsets[place] : offsets[place + 1]].tolist())
            wanted = self._grams_of[row]
            if len(wanted & own) >= CONTAINMENT * len(wanted) and not lacks(texts[place], self._questions[row]):
                yield place, row


def _similar(texts: Sequence[str]) -> SimilarTexts:
    similar = SimilarTexts(SIMILARITY)
    for batch in shingles.batches(texts):
        similar.keep(similar.prepare(batch))
    return similar


def _words(texts: Sequence[str]) -> tuple[shingles.Hashes, shingles.Offsets]:
    """What `shingles.words` gives, for any number of texts."""
    parts = [shingles.words(batch) for batch in shingles.batches(texts)]
    hashes = np.concatenate([np.empty(0, np.uint64), *(part for part, _ in parts)])
    lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(offsets) for _, offsets in parts)])
    return hashes, np.cumsum(lengths)


def _distinct(grams: shingles.Hashes, offsets: shingles.Offsets) -> tuple[shingles.Hashes, Rows]:
    """Each gram of each text once, with the text's row; sorted by gram, then row."""
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((rows, grams))
    grams, rows = grams[order], rows[order]
    fresh = np.ones(len(grams), np.bool_)
    fresh[1:] = (grams[1:] != grams[:-1]) | (rows[1:] != rows[:-1])
    return grams[fresh], rows[fresh]


def _counts(grams: shingles.Hashes) -> Rows:
    """How often each of the sorted grams occurs."""
    return np.searchsorted(grams, grams, side="right") - np.searchsorted(grams, grams)


def _joined(
    grams: shingles.Hashes, offsets: shingles.Offsets, sorted_grams: shingles.Hashes, rows: Rows
) -> Iterator[tuple[int, int]]:
    """The distinct pairs (text, reference) that have a gram in common, sorted."""
    left = np.searchsorted(sorted_grams, grams)
    counts = np.searchsorted(sorted_grams, grams, side="right") - left
    hits = np.flatnonzero(counts)
    places = np.searchsorted(offsets, hits, side="right") - 1
    repeats = counts[hits]
    within = np.arange(int(repeats.sum())) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    found = rows[np.repeat(left[hits], repeats) + within]
    pairs = np.unique(np.repeat(places, repeats) << 32 | found)
    yield from zip((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist(), strict=True)
