"""Turns many texts at once into hashes of their character n-grams and words, and these into MinHash signatures."""

import functools
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

# Four characters: a typo changes at most four shingles, and unrelated texts of a language still share few.
SHINGLE_CHARACTERS = 4
# What one call works on at a time; temporary arrays take about 60 bytes per character.
BATCH_CHARACTERS = 1 << 17
_SEED = 42
_BREAK = "\0"
_ODD = [np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)]


def folded(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """Code points of all texts, NFKC and case-folded, 0 where no letter, mark or digit stands; 1 before each text.

    What is not part of a word counts as white space: punctuation, symbols, underscores, control characters.
    """
    joined = _BREAK.join(chain(("",), (text.replace(_BREAK, " ") for text in texts)))
    if not joined.isascii():
        joined = unicodedata.normalize("NFKC", joined)
    joined = joined.casefold() + " " * SHINGLE_CHARACTERS
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.where(codes == 0, np.uint32(1), codes * _word_characters()[codes])


def shingles(texts: Sequence[str]) -> tuple[Hashes, Offsets]:
    """Hashes of the character 4-grams inside the words of each text: (all of them, where each text's begin and end).

    Words are padded by a space on both sides, and no shingle spans two words, so that the order of words has no
    weight. A text without any word (only symbols, say) has one shingle, of the text itself. Repeats are kept.
    """
    codes = folded(texts)
    starts = np.flatnonzero(codes == 1)
    letters = np.where(codes == 1, np.uint32(0), codes)
    first, second, third, fourth = (letters[at : len(letters) - SHINGLE_CHARACTERS + 1 + at] for at in range(4))
    places = np.flatnonzero((second != 0) & ((first == 0) | (third != 0)))
    third_kept = third[places]
    windows = (first[places], second[places], third_kept, np.where(third_kept == 0, np.uint32(0), fourth[places]))
    hashes = _mixed(sum(part * odd for part, odd in zip(windows, _ODD, strict=True)))
    offsets = np.append(np.searchsorted(places, starts), len(places)).astype(np.int64)
    return _with_wordless(texts, hashes, offsets)


def words(texts: Sequence[str]) -> tuple[Hashes, Offsets]:
    """Hashes of the words of each text in their order: (all of them, where each text's words begin and end)."""
    codes = folded(texts)
    text_starts = np.flatnonzero(codes == 1)
    letters = np.where(codes == 1, np.uint32(0), codes)
    inside = letters != 0
    # The first place is the mark before the first text, never a letter.
    begins = np.flatnonzero(inside[1:] & ~inside[:-1]) + 1
    if not len(begins):
        return np.empty(0, np.uint64), np.zeros(len(texts) + 1, np.int64)
    position = np.arange(len(letters), dtype=np.uint64)
    word_of = np.cumsum(inside & ~np.concatenate(([False], inside[:-1]))) - 1
    position -= begins[np.maximum(word_of, 0)].astype(np.uint64)
    terms = np.where(inside, _mixed(letters * _ODD[0] + position * _ODD[1]), np.uint64(0))
    hashes = _mixed(np.add.reduceat(terms, begins))
    offsets = np.append(np.searchsorted(begins, text_starts), len(begins)).astype(np.int64)
    return hashes, offsets


def word_keys(texts: Sequence[str]) -> list[bytes]:
    """A key for each text, equal for two that differ only in case, punctuation and white space; b"" without words."""
    hashes, offsets = words(texts)
    return [hashes[start:end].tobytes() for start, end in pairwise(offsets.tolist())]


def runs(hashes: Hashes, offsets: Offsets, length: int) -> tuple[Hashes, Offsets]:
    """Hashes of every `length` words in a row inside each text, from what `words` returned."""
    count = len(hashes) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64), np.zeros(len(offsets), np.int64)
    total = np.zeros(count, np.uint64)
    for at in range(length):
        total = (total ^ hashes[at : at + count]) * _ODD[at % len(_ODD)]
        total ^= total >> np.uint64(29)
    ends = np.repeat(offsets[1:], np.diff(offsets))[:count]
    places = np.flatnonzero(np.arange(count) + length <= ends)
    return total[places], np.searchsorted(places, offsets).astype(np.int64)


def signatures(hashes: Hashes, offsets: Offsets, rows: int) -> npt.NDArray[np.uint8]:
    """The MinHash signature of each text, one byte for each of `rows` permutations: shape (texts, rows)."""
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), rows, _SEED)
    count = len(offsets) - 1
    digests = np.fromiter(chain.from_iterable(matrix.to_rows()), np.uint32, count * rows)
    # One byte of a minimum says as much as four of them but for one accidental match in 256.
    return ((digests * np.uint32(2654435761)) >> np.uint32(24)).astype(np.uint8).reshape(count, rows)


def bags(hashes: Hashes, offsets: Offsets) -> npt.NDArray[np.uint32]:
    """32 bits for each text, equal for texts of the same words in any order and case; no text may be without any."""
    sums = np.add.reduceat(hashes, offsets[:-1]) if len(offsets) > 1 else np.empty(0, np.uint64)
    return (sums >> np.uint64(32)).astype(np.uint32)


def sets(texts: Sequence[str]) -> list[Hashes]:
    """The distinct shingles of each text, sorted."""
    found: list[Hashes] = []
    for batch in batches(texts):
        hashes, offsets = shingles(batch)
        found += [distinct(hashes[offsets[row] : offsets[row + 1]]) for row in range(len(batch))]
    return found


def distinct(hashes: Hashes) -> Hashes:
    """Each hash once, sorted; for some hundred of them, ten times as quick as numpy's own `unique`."""
    ordered = np.sort(hashes)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))] if len(ordered) else ordered


def jaccard(first: Hashes, second: Hashes) -> float:
    """Exact Jaccard similarity of two of the `sets`: shared shingles over all shingles."""
    both = np.concatenate((first, second))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(both) - shared) if len(both) else 1.0


def batches(texts: Iterable[str], most: int = 1024) -> Iterator[list[str]]:
    """The texts in groups of at most `most`, and of about BATCH_CHARACTERS where no single text is longer."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and (len(group) == most or size + len(text) > BATCH_CHARACTERS):
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


@functools.cache
def _word_characters() -> npt.NDArray[np.bool_]:
    """For every code point: whether it belongs to a word (letters, marks, numbers). 1.1 MB, made on first use."""
    return np.fromiter((unicodedata.category(chr(code))[0] in "LMN" for code in range(0x110000)), np.bool_, 0x110000)


def _mixed(values: Any) -> Hashes:
    """Spreads what distinguishes two values over all 64 bits."""
    mixed: Hashes = (values ^ (values >> np.uint64(32))) * _ODD[3]
    mixed ^= mixed >> np.uint64(29)
    mixed *= _ODD[1]
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _with_wordless(texts: Sequence[str], hashes: Hashes, offsets: Offsets) -> tuple[Hashes, Offsets]:
    wordless = np.flatnonzero(offsets[1:] == offsets[:-1])
    if not len(wordless):
        return hashes, offsets
    own = [
        zlib.crc32(" ".join(texts[row].replace(_BREAK, " ").split()).encode("utf-8", "surrogatepass"))
        for row in wordless.tolist()
    ]
    hashes = np.insert(hashes, offsets[wordless], np.array(own, np.uint64))
    counts = np.diff(offsets)
    counts[wordless] = 1
    return hashes, np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
