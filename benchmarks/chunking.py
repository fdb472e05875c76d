"""Ten megabytes of prose to chunks of 512 tokens against semchunk and chonkie: seconds, sizes, and sentences cut.

Ours runs as in the product (without the tokenizer's threads), the peers with all the threads that they use.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.peers import prose
from benchmarks.peers.prose import Corpus

CORPUS_BYTES, SIZE, OVERLAPS = 10_000_000, 512, (0, 50)
# Who took less than this many times our seconds has a second run, as ours has; the better one counts.
CLOSE = 3
# A planted sentence is looked for this far behind the one before it.
_WITHIN = 100_000


@dataclass(frozen=True, slots=True)
class Run:
    """What one chunker did: seconds, chunks, chunks over the size, planted sentences in no chunk."""

    name: str
    seconds: float
    chunks: int
    too_large: int
    cut: int


def run() -> list[Row]:
    from backend.providers import bundled

    corpus = prose.build(CORPUS_BYTES)
    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as folder:
        tokenizer_json = asyncio.run(bundled.convert(Path(folder))) / "tokenizer.json"
        return [row for overlap in OVERLAPS for row in _compare(corpus, tokenizer_json, overlap)]


def _compare(corpus: Corpus, tokenizer_json: Path, overlap: int) -> list[Row]:
    from tokenizers import Tokenizer

    from benchmarks.peers.chunkers import chunkers

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.no_truncation()

    def measured(name: str, cut: Callable[[str], list[str]], threads: str) -> Run:
        os.environ["TOKENIZERS_PARALLELISM"] = threads
        started = time.perf_counter()
        chunks = cut(corpus.text)
        seconds = time.perf_counter() - started
        sizes = [
            len(encoding)
            for start in range(0, len(chunks), 256)
            for encoding in tokenizer.encode_batch_fast(chunks[start : start + 256], add_special_tokens=False)
        ]
        return Run(name, seconds, len(chunks), sum(size > SIZE for size in sizes), _cut(corpus.planted, chunks))

    def ours(text: str) -> list[str]:
        return _ours(text, tokenizer_json, overlap)

    first = measured("ours", ours, "false")
    peers = []
    for name in chunkers(tokenizer, SIZE, overlap):
        # Made anew for each run: semchunk remembers all that it has counted.
        runs = [measured(name, chunkers(tokenizer, SIZE, overlap)[name], "true")]
        if runs[0].seconds < CLOSE * first.seconds:
            runs.append(measured(name, chunkers(tokenizer, SIZE, overlap)[name], "true"))
        peers.append(_best(runs))
    mine = _best([first, measured("ours", ours, "false")])
    return list(_rows(mine, peers, len(corpus.planted), f"overlap {overlap}: "))


def _best(runs: Sequence[Run]) -> Run:
    """The run that was least disturbed by what else the machine did."""
    return min(runs, key=lambda run: run.seconds)


def _ours(text: str, tokenizer_json: Path, overlap: int) -> list[str]:
    """From the same string, with all that it costs to start: the tokenizer is read and nothing is remembered."""
    from backend.contents.blocks import Block
    from backend.contents.chunking import chunk
    from backend.contents.token_counting import HuggingFaceTokenCounter

    def blocks() -> Iterator[Block]:
        for paragraph in text.split("\n\n"):
            title = paragraph.lstrip("#")
            level = len(paragraph) - len(title)
            yield Block("heading", title.strip(), level) if level else Block("paragraph", paragraph)

    counter = HuggingFaceTokenCounter(tokenizer_json)
    drafts = chunk(blocks(), counter, chunk_size_tokens=SIZE, chunk_overlap_tokens=overlap)
    return [draft.content for draft in drafts]


def _cut(planted: Sequence[str], chunks: Sequence[str]) -> int:
    """How many of the sentences stand whole in no chunk; both are in the order of the document."""
    joined = "\0".join(" ".join(chunk.split()) for chunk in chunks)
    missing = place = 0
    for sentence in planted:
        found = joined.find(sentence, place, place + _WITHIN)
        missing += found < 0
        place = max(place, found)
    return missing


def _rows(mine: Run, peers: Sequence[Run], planted: int, prefix: str) -> Iterator[Row]:
    fewest = min(peer.cut for peer in peers)
    best = min((peer for peer in peers if peer.cut == fewest), key=lambda peer: peer.seconds)
    fastest = _best(peers)
    least = f"{prefix}time against {best.name}, which cuts the fewest sentences of the peers"
    yield Row(least, mine.seconds, best.seconds, "s", 1.0, "most")
    yield Row(f"{prefix}time against {fastest.name}, the fastest", mine.seconds, fastest.seconds, "s", 1.0, "most")
    for peer in peers:
        yield Row(f"{prefix}time against {peer.name}", mine.seconds, peer.seconds, "s", 1.0, "most")
    for one in (mine, *peers):
        # What the peers lose is told, not judged.
        target = 1.0 if one is mine else 0.0
        kept = planted - one.cut
        yield Row(f"{prefix}planted sentences kept whole, {one.name}", kept, planted, "", target, "least")
        fitting = one.chunks - one.too_large
        yield Row(f"{prefix}chunks within the size, {one.name}", fitting, one.chunks, "", target, "least")
