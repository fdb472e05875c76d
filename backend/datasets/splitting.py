"""Which examples are held out: whole sections, so that no held-out fact has a neighbour in the training set."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

# Two levels of headings make a section; deeper ones talk about the same thing.
SECTION_DEPTH = 2

# A document, then the headings above a chunk of it, outermost first.
HeadingPath = tuple[Hashable, ...]


def path_of(content_id: int, meta: Mapping[str, Any]) -> HeadingPath:
    """Where a chunk stands: its document and all the headings above it."""
    return (content_id, *(meta.get("headings") or []))


def held_out(paths: Sequence[HeadingPath], train_share: float) -> list[bool]:
    """For each example, by the path of its chunk: True when it belongs to the evaluation set.

    Whole sections are held out, in an order that depends on their names alone, while the evaluation set stays at or
    under `1 - train_share` of the examples; the first one is taken even when it is larger, as long as at least half of
    all examples are left to train on. With a single section the last examples are held out instead.
    """
    assert 0 < train_share < 1
    wanted = max(1, round(len(paths) * (1 - train_share)))
    if len(paths) < 2:
        return [False] * len(paths)
    sections = _sections(paths, wanted)
    sizes = Counter(sections)
    if len(sizes) == 1:
        return [index >= len(sections) - wanted for index in range(len(sections))]
    chosen: set[HeadingPath] = set()
    taken = 0
    for section in sorted(sizes, key=_shuffled):
        size = sizes[section]
        limit = wanted if chosen else max(wanted, len(sections) // 2)
        if taken + size <= limit:
            chosen.add(section)
            taken += size
    if not chosen:
        chosen.add(min(sizes, key=lambda section: (sizes[section], _shuffled(section))))
    return [section in chosen for section in sections]


def _sections(paths: Sequence[HeadingPath], limit: int) -> list[HeadingPath]:
    """Two levels of headings, and more of them where a section would hold more than `limit` examples.

    The title page of many documents is the heading of all the rest: two levels would make one section of everything.
    """
    sections = [path[: 1 + SECTION_DEPTH] for path in paths]
    for length in range(2 + SECTION_DEPTH, max(len(path) for path in paths) + 1):
        sizes = Counter(sections)
        sections = [
            path[:length] if sizes[section] > limit else section for path, section in zip(paths, sections, strict=True)
        ]
    return sections


def _shuffled(section: HeadingPath) -> str:
    return hashlib.sha256(repr(section).encode()).hexdigest()
