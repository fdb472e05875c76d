"""Near duplicates by kept libraries, used as their own pages show; each takes texts and gives who is dropped."""

import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

THRESHOLD, PERMUTATIONS = 0.8, 128


@dataclass(frozen=True, slots=True)
class Run:
    """What one way took over the texts: the rows that it drops, and by how much memory grew at its peak."""

    seconds: float
    dropped: list[int]
    growth_mb: float


def shingles(text: str) -> set[str]:
    """The product's own shingles in plain Python: 4-grams inside the words, each word between two spaces."""
    found: set[str] = set()
    for word in text.casefold().split():
        padded = f" {word} "
        found.update(padded[at : at + 4] for at in range(max(len(padded) - 3, 1)))
    return found


def timed(way: str, texts: Sequence[str]) -> Run:
    """Runs one of WAYS in this process, which should be a new one for the memory to tell something."""
    drop = WAYS[way]
    drop(texts[:200])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    dropped = drop(texts)
    seconds = time.perf_counter() - started
    return Run(seconds, dropped, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def rensa_without_shingling(texts: Sequence[str]) -> float:
    """Seconds of rensa's deduplicator alone, its shingles made before: what remains if they cost nothing."""
    from rensa import RMinHashDeduplicator

    entries = [(str(row), list(shingles(text))) for row, text in enumerate(texts)]
    deduplicator = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=PERMUTATIONS, use_lsh=True)
    started = time.perf_counter()
    deduplicator.add_pairs(entries)
    return time.perf_counter() - started


def _ours(texts: Sequence[str]) -> list[int]:
    from backend.datasets.near_duplicates import find

    return sorted(find(enumerate(texts), threshold=THRESHOLD))


def _rensa_deduplicator(tokens: Callable[[str], Iterable[str]]) -> Callable[[Sequence[str]], list[int]]:
    def drop(texts: Sequence[str]) -> list[int]:
        from rensa import RMinHashDeduplicator

        deduplicator = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=PERMUTATIONS, use_lsh=True)
        keep = deduplicator.add_pairs((str(row), tokens(text)) for row, text in enumerate(texts))
        return [row for row, kept in enumerate(keep) if not kept]

    return drop


def _rensa_lsh(texts: Sequence[str]) -> list[int]:
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=16)
    kept: dict[int, RMinHash] = {}
    dropped = []
    for row, text in enumerate(texts):
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=42)
        sketch.update(list(shingles(text)))
        if any(sketch.jaccard(kept[other]) >= THRESHOLD for other in index.query(sketch)):
            dropped.append(row)
        else:
            index.insert(row, sketch)
            kept[row] = sketch
    return dropped


def _datasketch(texts: Sequence[str]) -> list[int]:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    dropped = []
    for row, text in enumerate(texts):
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        if index.query(sketch):
            dropped.append(row)
        else:
            index.insert(row, sketch)
    return dropped


WAYS: dict[str, Callable[[Sequence[str]], list[int]]] = {
    "ours": _ours,
    "rensa's deduplicator": _rensa_deduplicator(lambda text: list(shingles(text))),
    "rensa's deduplicator on whole words": _rensa_deduplicator(str.split),
    "rensa's LSH": _rensa_lsh,
    "datasketch": _datasketch,
}
