"""Files that try to break a parser: each ends within limits, with text or a typed error, and harms nobody."""

import asyncio
import itertools
import os
import resource
import sys
from pathlib import Path

import pytest

from backend.contents.extraction import ExtractionError, extract
from backend.contents.parsers.failures import FAILURES
from tests.contents import children, corpus, crafted

MAX_CPU_SECONDS = 10.0
MAX_CHILD_BYTES = 512 * 1024 * 1024

EXPECTED = {
    "DOCUMENT_TOO_COMPLEX": {"flate-bomb", "endless-text", "form-loop", "form-fan"},
    "DOCUMENT_BROKEN": {"billion-laughs", "quadratic-entities", "external-entity-0", "doctype-utf-16", "size-lies"},
    "DOCUMENT_TOO_LARGE": {"zip-bomb-xml", "zip-bomb-media", "many-parts", "million-pages", "too-much-text"},
    "DOCUMENT_ENCRYPTED": {"encryption-nonsense"},
    "EMPTY_DOCUMENT": {"only-blanks", "negative-pages"},
    "text": {"mixed-encodings", "giant-line", "doubled", "many-paragraphs", "open-links", "utf-16-cut"},
}


@pytest.mark.slow
@pytest.mark.timeout(900)  # more than a hundred children, each with seconds of its own
async def test_hostile_files(tmp_path: Path) -> None:
    ends: dict[str, str] = {}
    too_slow: dict[str, float] = {}
    peaks: list[int] = []
    watch = asyncio.create_task(watch_memory(peaks))
    path = tmp_path / "document"
    for name, mime_type, data in itertools.chain(corpus.hostile(), crafted.crafted()):
        assert name not in ends, name
        path.write_bytes(data)
        # CPU time, not wall-clock time: other tests may run beside this one.
        before = children_cpu_seconds()
        ends[name] = await end_of(path, mime_type)
        taken = children_cpu_seconds() - before
        if taken > MAX_CPU_SECONDS:
            too_slow[name] = taken
    watch.cancel()
    assert len(ends) >= 100
    assert set(ends.values()) <= {"text", *FAILURES}
    assert too_slow == {}
    assert {end: {name for name in names if ends[name] == end} for end, names in EXPECTED.items()} == EXPECTED
    assert max(peaks, default=0) < MAX_CHILD_BYTES
    assert sys.platform != "linux" or max(peaks) > MAX_CHILD_BYTES // 4, "the bombs were seen"


async def end_of(path: Path, mime_type: str) -> str:
    """`text`, or the code of the error; anything else that is raised fails the test."""
    try:
        document = await extract(path, mime_type)
    except ExtractionError as error:
        return error.code if str(error) else "no sentence"
    return "text" if document.blocks and document.character_count > 0 else "nothing"


def children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def watch_memory(peaks: list[int]) -> None:
    """Note the peak of each child while it runs. (Linux counts the memory of the parent into a child's `ru_maxrss`.)"""
    while sys.platform == "linux":
        peaks += [children.peak_memory_bytes(pid) for pid in children.parser_children(os.getpid())]
        await asyncio.sleep(0.02)
