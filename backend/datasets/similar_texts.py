"""Holds many texts and finds those that resemble a given one: by MinHash bands, then by exact Jaccard similarity."""

import functools
import math
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backend.datasets import shingles

# Rows of a signature that must agree for two texts to be compared: four bytes, read as one number.
_ROWS_PER_BAND = 4
# Of pairs just at the threshold, the share that may go unseen, as far as _MOST_BANDS allow (below 0.56 they do not).
_MISSED = 0.002
_MOST_BANDS = 64
# Candidates whose estimate lies this many standard errors below the threshold are not compared.
_ERRORS_BELOW = 3.0
# More texts than this that agree in a band stem from one template: only the last ones are looked at.
_BUCKET = 64
# Candidates of one text that are compared exactly: the most alike by signature.
_MOST_COMPARED = 16
# What stays in memory of the texts before they go to a temporary file.
_MEMORY_BYTES = 4 << 20

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Texts with all that is needed to look them up."""

    texts: Sequence[str]
    hashes: shingles.Hashes
    offsets: shingles.Offsets
    # Of each text, MinHash rows of a byte each, and at last the four bytes of its bag of words.
    signatures: npt.NDArray[np.uint8]
    salts: npt.NDArray[np.uint32]

    def shingles_of(self, row: int) -> shingles.Hashes:
        """The distinct shingles of one text, sorted."""
        return shingles.distinct(self.hashes[self.offsets[row] : self.offsets[row + 1]])


class SimilarTexts:
    """Texts by row number, from 0 in the order in which they were kept.

    About 200 bytes of memory per text at a threshold of 0.8 (800 at 0.5), whatever its length: the text itself goes
    to a temporary file once 4 MB of texts are held. With `salt`, only texts of equal salt are found, and those of the
    very same words in any order and case.
    """

    def __init__(self, threshold: float, salt: Callable[[str], int] | None = None) -> None:
        if not 0.4 <= threshold <= 1:
            raise ValueError(f"the threshold must lie between 0.4 and 1, not {threshold}")
        self.threshold = threshold
        self._salt = salt
        seen = threshold**_ROWS_PER_BAND
        bands = 1 if seen == 1 else math.ceil(math.log(_MISSED) / math.log(1 - seen))
        self._rows = _ROWS_PER_BAND * min(bands, _MOST_BANDS)
        self._buckets = _Buckets(self._rows, threshold)
        self._texts = _Texts()

    def __len__(self) -> int:
        return len(self._texts)

    def prepare(self, texts: Sequence[str]) -> Prepared:
        """Shingles and signatures of a batch; `shingles.batches` says how large one should be."""
        hashes, offsets = shingles.shingles(texts)
        salts = np.zeros(len(texts), np.uint32)
        if self._salt is not None:
            salts[:] = [self._salt(text) for text in texts]
        bags = shingles.bags(hashes, offsets)[:, None].view(np.uint8)
        signatures = np.hstack((shingles.signatures(hashes, offsets, self._rows), bags))
        return Prepared(texts, hashes, offsets, signatures, salts)

    def keep(self, batch: Prepared, rows: Sequence[int] | Ints | slice = slice(None)) -> None:
        """Takes in the texts of these rows of the batch."""
        chosen = np.arange(len(batch.texts))[rows]
        self._buckets.insert(batch.signatures[chosen], batch.salts[chosen])
        self._texts.extend(batch.texts[row] for row in chosen)

    def text(self, row: int) -> str:
        return self._texts[row]

    def near(self, batch: Prepared) -> list[list[tuple[int, float]]]:
        """For each text of the batch the kept rows that reach the threshold, with their exact Jaccard similarity.

        The most alike come first. Where thousands of texts are alike, only the likeliest are looked at.
        """
        queries, rows = self._buckets.candidates(batch.signatures, batch.salts, _BUCKET, _MOST_COMPARED)
        wanted = np.unique(rows).tolist()
        kept = dict(zip(wanted, shingles.sets([self._texts[row] for row in wanted]), strict=True))
        return self._verified(batch, zip(queries.tolist(), rows.tolist(), strict=True), kept.__getitem__)

    def near_within(self, batch: Prepared) -> list[list[tuple[int, float]]]:
        """The same among the batch itself: for each text the earlier rows of the batch that reach the threshold."""
        count = len(batch.texts)
        own = _Buckets(self._rows, self.threshold)
        own.insert(batch.signatures, batch.salts)
        queries, rows = own.candidates(batch.signatures, batch.salts, count, _MOST_COMPARED, earlier=True)
        pairs = zip(queries.tolist(), rows.tolist(), strict=True)
        return self._verified(batch, pairs, functools.cache(batch.shingles_of))

    def _verified(
        self, batch: Prepared, pairs: Iterable[tuple[int, int]], kept: Callable[[int], shingles.Hashes]
    ) -> list[list[tuple[int, float]]]:
        found: list[list[tuple[int, float]]] = [[] for _ in batch.texts]
        current, own = -1, np.empty(0, np.uint64)
        for query, row in pairs:
            if query != current:
                current, own = query, batch.shingles_of(query)
            similarity = shingles.jaccard(own, kept(row))
            if similarity >= self.threshold:
                found[query].append((row, similarity))
        for rows in found:
            rows.sort(key=lambda pair: (-pair[1], pair[0]))
        return found


class _Buckets:
    """A hash table of signature bands, as linked lists in flat arrays: 8 bytes per band and text, and its slot."""

    def __init__(self, rows: int, threshold: float) -> None:
        self._rows = rows
        # The bag of words is one band more, which the salt has no part in.
        self._bands = rows // _ROWS_PER_BAND + 1
        self._count = 0
        self._signatures = np.empty((256, _ROWS_PER_BAND * self._bands), np.uint8)
        self._salts = np.empty(256, np.uint32)
        # A node is row * bands + band; each names the one that was in its slot before, -1 none.
        self._before = np.empty(256 * self._bands, np.int32)
        self._last = np.full(1 << (256 * self._bands).bit_length(), -1, np.int32)
        error = math.sqrt(threshold * (1 - threshold) / rows)
        self._least = threshold - _ERRORS_BELOW * error

    def insert(self, signatures: npt.NDArray[np.uint8], salts: npt.NDArray[np.uint32]) -> None:
        start, end = self._count, self._count + len(signatures)
        self._make_room(end)
        self._signatures[start:end] = signatures
        self._salts[start:end] = salts
        self._count = end
        if end * self._bands > 2 * len(self._last):
            self._last = np.full(2 * len(self._last), -1, np.int32)
            start = 0
        # In steps, so that a table that grows needs little memory for it.
        for at in range(start, end, 4096):
            self._link(at, min(at + 4096, end))

    def candidates(
        self,
        signatures: npt.NDArray[np.uint8],
        salts: npt.NDArray[np.uint32],
        longest: int,
        most: int,
        *,
        earlier: bool = False,
    ) -> tuple[Ints, Ints]:
        """Pairs (query, row) that agree in a band and by estimate, sorted; with `earlier`, only rows before the query.

        At most `longest` texts of each bucket are looked at, the last ones first, and at most `most` rows are kept
        for each query.
        """
        keys = _keys(signatures)
        nodes = self._last[self._slots(keys, salts)].ravel()
        queries = np.repeat(np.arange(len(signatures)), self._bands)
        keys = keys.ravel()
        band_keys = self._signatures.view(np.uint32).ravel()
        pairs: list[Ints] = []
        for _ in range(longest):
            alive = np.flatnonzero(nodes >= 0)
            if not len(alive):
                break
            nodes, queries, keys = nodes[alive], queries[alive], keys[alive]
            rows = nodes // self._bands
            same = band_keys[nodes] == keys
            same &= (self._salts[rows] == salts[queries]) | (nodes % self._bands == self._bands - 1)
            if earlier:
                same &= rows < queries
            pairs.append(np.unique(queries[same] << 32 | rows[same]))
            nodes = self._before[nodes]
        found = np.unique(np.concatenate(pairs)) if pairs else np.empty(0, np.int64)
        return self._most_alike(found, signatures, most)

    def _most_alike(self, pairs: Ints, signatures: npt.NDArray[np.uint8], most: int) -> tuple[Ints, Ints]:
        queries, rows = pairs >> 32, pairs & 0xFFFFFFFF
        agreeing = np.empty(len(pairs), np.float64)
        own, kept = signatures[:, : self._rows], self._signatures[:, : self._rows]
        for at in range(0, len(pairs), 4096):
            part = slice(at, at + 4096)
            agreeing[part] = (own[queries[part]] == kept[rows[part]]).mean(axis=1)
        # One byte agrees by accident once in 256.
        likely = (agreeing - 1 / 256) / (1 - 1 / 256) >= self._least
        queries, rows, agreeing = queries[likely], rows[likely], agreeing[likely]
        if len(queries) > most:
            best = np.lexsort((rows, -agreeing, queries))
            firsts = np.searchsorted(queries, queries)  # sorted by query, so `best` keeps each query's places
            chosen = np.sort(best[np.arange(len(best)) - firsts < most])
            queries, rows = queries[chosen], rows[chosen]
        return queries, rows

    def _link(self, start: int, end: int) -> None:
        slots = self._slots(_keys(self._signatures[start:end]), self._salts[start:end]).ravel()
        order = np.argsort(slots, kind="stable")
        slots = slots[order]
        nodes = (order + start * self._bands).astype(np.int32)
        follows = np.concatenate(([False], slots[1:] == slots[:-1]))
        self._before[nodes] = np.where(follows, np.concatenate(([-1], nodes[:-1])), self._last[slots])
        ends = np.append(~follows[1:], True)
        self._last[slots[ends]] = nodes[ends]

    def _slots(self, keys: npt.NDArray[np.uint32], salts: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
        mixed = keys.astype(np.uint64) << np.uint64(32)
        mixed[:, :-1] |= salts[:, None]
        mixed += np.arange(1, self._bands + 1, dtype=np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        mixed ^= mixed >> np.uint64(31)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        return mixed >> np.uint64(64 - (len(self._last).bit_length() - 1))

    def _make_room(self, count: int) -> None:
        room = len(self._salts)
        if count <= room:
            return
        room = max(count, room + room // 2)
        self._signatures = _grown(self._signatures, room)
        self._salts = _grown(self._salts, room)
        self._before = _grown(self._before, room * self._bands)


class _Texts:
    """Texts by number, of which at most _MEMORY_BYTES are held in memory; the rest is in a temporary file."""

    def __init__(self) -> None:
        self._ends = array("Q", [0])
        self._file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115 - closed with its owner
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def extend(self, texts: Iterable[str]) -> None:
        self._file.seek(self._ends[-1])
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            self._file.write(encoded)
            self._ends.append(self._ends[-1] + len(encoded))

    def __getitem__(self, row: int) -> str:
        start, end = self._ends[row], self._ends[row + 1]
        self._file.seek(start)
        return self._file.read(end - start).decode("utf-8", "surrogatepass")


def _keys(signatures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """One number for each band of each signature."""
    return np.ascontiguousarray(signatures).view(np.uint32)


def _grown(values: npt.NDArray[Any], room: int) -> npt.NDArray[Any]:
    larger = np.empty((room, *values.shape[1:]), values.dtype)
    larger[: len(values)] = values
    return larger
