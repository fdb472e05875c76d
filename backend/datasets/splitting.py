"""Which examples are held out: whole sections, so that no held-out fact has a neighbour in the training set."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

# Two levels of headings make a section; deeper ones talk about the same thing.
SECTION_DEPTH = 2


def section_of(content_id: int, meta: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """The section that a chunk belongs to: its document and the first headings above it."""
    return (content_id, *list(meta.get("headings") or [])[:SECTION_DEPTH])


def held_out(sections: Sequence[Hashable], train_share: float) -> list[bool]:
    """For each example, by its section: True when it belongs to the evaluation set.

    Whole sections are held out, in an order that depends on their names alone, while the evaluation set stays at or
    under `1 - train_share` of the examples; the first one is taken even when it is larger, as long as at least half of
    all examples are left to train on. With a single section the last examples are held out instead.
    """
    assert 0 < train_share < 1
    wanted = max(1, round(len(sections) * (1 - train_share)))
    sizes = Counter(sections)
    if len(sections) < 2:
        return [False] * len(sections)
    if len(sizes) == 1:
        return [index >= len(sections) - wanted for index in range(len(sections))]
    chosen: set[Hashable] = set()
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


def _shuffled(section: Hashable) -> str:
    return hashlib.sha256(repr(section).encode()).hexdigest()
