"""Near-duplicate removal over 100,000 question-and-answer texts, against the libraries that people use for it."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise

from benchmarks.measure import Row
from benchmarks.peers.near_duplicates import THRESHOLD, Run, rensa_without_shingling, shingles, timed
from benchmarks.peers.near_duplicates_corpus import BINS, Corpus, corpus

TEXTS, COPIES, RENUMBERED, ROUNDS = 100_000, 6_000, 2_000, 3
SLOW_TEXTS = 20_000
RECALL, PRECISION, MEMORY_MB = 0.95, 1.0, 40.0


def run() -> list[Row]:
    planted = corpus(TEXTS, COPIES, RENUMBERED)
    results: dict[str, list[Run]] = {"ours": [], "rensa's deduplicator": [], "rensa's LSH": []}
    for _ in range(ROUNDS):
        for way, runs in results.items():
            runs.append(_alone(way, planted.texts))
    words = _alone("rensa's deduplicator on whole words", planted.texts)
    slow = _alone("datasketch", planted.texts[:SLOW_TEXTS])
    # The best round of each: what else the machine does only ever takes time away.
    best = {way: min(runs, key=lambda result: result.seconds) for way, runs in results.items()}
    result = best.pop("ours")
    rate = TEXTS / result.seconds
    rates = {way: TEXTS / other.seconds for way, other in best.items()}
    rates[f"datasketch (on {SLOW_TEXTS:,} of them)"] = SLOW_TEXTS / slow.seconds
    rows = [
        Row(f"{TEXTS:,} texts, same shingles: against {peer}", rate, other, "texts/s", 1.0, "least")
        for peer, other in rates.items()
    ]
    alone = SLOW_TEXTS / rensa_without_shingling(planted.texts[:SLOW_TEXTS])
    rows.append(Row("ours with shingling: against rensa without it", rate, alone, "texts/s", 0.0, "least"))
    # Fewer, larger tokens are quicker and find less, as the recall below says: no target is set for these two.
    rows.append(
        Row("other shingles: against rensa on whole words", rate, TEXTS / words.seconds, "texts/s", 0.0, "least")
    )
    plain = best["rensa's deduplicator"]
    rows += _recalls(planted, {"ours": result, "rensa": plain, "rensa on whole words": words})
    rows.append(
        Row(
            "precision: dropped ones at 0.8 and above by a count in Python",
            _precision(planted, result),
            PRECISION,
            "",
            1,
            "least",
        )
    )
    kept = 1 - len(set(planted.renumbered) & set(result.dropped)) / RENUMBERED
    rows.append(Row(f"{RENUMBERED:,} texts with another number: kept", kept, 1.0, "", 1, "least"))
    growth = max(run.growth_mb for run in results["ours"])
    plain_growth = max(run.growth_mb for run in results["rensa's deduplicator"])
    rows.append(Row("growth of memory at its peak", growth, MEMORY_MB, "MB", 1.0, "most"))
    rows.append(Row("growth of memory, against rensa's deduplicator", growth, plain_growth, "MB", 1.0, "most"))
    return rows


def _alone(way: str, texts: Sequence[str]) -> Run:
    """In a new process, so that no way profits from memory that another one took."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(timed, way, texts).result()


def _recalls(planted: Corpus, results: dict[str, Run]) -> list[Row]:
    at_least = {row for row, (_, similarity) in planted.copies.items() if similarity >= THRESHOLD}
    rows = []
    for who, result in results.items():
        found = len(at_least & set(result.dropped)) / len(at_least)
        name = f"recall at 0.8 and above ({len(at_least):,} copies): {who}"
        # The others' recall is there to be compared; only ours has a target.
        rows.append(Row(name, found, RECALL, "", 1.0 if who == "ours" else 0.0, "least"))
    dropped = set(results["ours"].dropped)
    for low, high in pairwise((*BINS, 1.01)):
        inside = {row for row, (_, similarity) in planted.copies.items() if low <= similarity < high}
        found = len(inside & dropped) / len(inside)
        name = f"found from {low:.2f} to {min(high, 1):.2f} ({len(inside):,} copies)"
        # Below the threshold nothing may be dropped.
        rows.append(
            Row(name, found, RECALL, "", 1.0, "least") if low >= THRESHOLD else Row(name, found, 1, "", 0, "most")
        )
    return rows


def _precision(planted: Corpus, result: Run) -> float:
    """Of what was dropped, the share that is alike enough to its original by a count in plain Python."""
    right = 0
    for row in result.dropped:
        if row in planted.copies:
            original, _ = planted.copies[row]
            one, other = shingles(planted.texts[row]), shingles(planted.texts[original])
            right += len(one & other) / len(one | other) >= THRESHOLD
    return right / max(len(result.dropped), 1)
