"""Which examples are held out: whole sections, so that no held-out fact has a neighbour in the training set."""

import hashlib
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

# Two levels of headings make a section; deeper ones talk about the same thing.
SECTION_DEPTH = 2
# Where even the smallest section is a larger share of all examples, only its last chunks are held out.
_LARGEST_SHARE = 0.25

# A document, then the headings above a chunk of it, outermost first.
HeadingPath = tuple[Hashable, ...]


def path_of(content_id: int | None, meta: Mapping[str, Any]) -> HeadingPath:
    """Where a chunk stands: its document and all the headings above it."""
    return (content_id, *(meta.get("headings") or []))


def held_out(
    paths: Sequence[HeadingPath],
    train_share: float,
    *,
    chunks: Sequence[int] | None = None,
    pinned: Sequence[bool | None] | None = None,
    never: Collection[HeadingPath] = (),
) -> list[bool]:
    """For each example, by the path of its chunk and in reading order: True when it belongs to the evaluation set.

    Whole sections are held out, in an order that depends on their names alone, while the evaluation set stays at or
    under `1 - train_share` of the examples. Where every section is larger than that, the smallest one is taken; but
    of one that is more than a quarter of all examples the last ones only, and where `chunks` are given, those of whole
    chunks: two documents without headings are two sections, and half of everything is too much to hold out. An example
    that is `pinned` keeps its side, and its section goes there with it. Sections that are in `never` are held out only
    when all are.
    """
    if len(paths) < 2:
        return [bool(side) for side in pinned] if pinned else [False] * len(paths)
    sections, wanted = sections_of(paths, train_share), _wanted(paths, train_share)
    sizes = Counter(sections)
    sides = _pinned_sides(sections, pinned or ())
    chosen = {section for section, is_out in sides.items() if is_out}
    taken = sum(sizes[section] for section in chosen)
    candidates = sizes.keys() - sides.keys() - set(never)
    for section in sorted(candidates, key=_shuffled):
        if taken + sizes[section] <= wanted:
            chosen.add(section)
            taken += sizes[section]
    found = [section in chosen for section in sections]
    if not chosen and (candidates or not sides):
        smallest = min(candidates or sizes, key=lambda section: (sizes[section], _shuffled(section)))
        places = [index for index, section in enumerate(sections) if section == smallest]
        own = None if chunks is None else [chunks[index] for index in places]
        # A single chunk is divided only where too little would be left to train on.
        is_whole = own is not None and own[0] == own[-1]
        if len(places) > max(wanted, (0.5 if is_whole else _LARGEST_SHARE) * len(paths)):
            places = places[_tail(len(places), wanted, own) :]
        for index in places:
            found[index] = True
    return found if pinned is None else [out if pin is None else pin for out, pin in zip(found, pinned, strict=True)]


def sections_of(paths: Sequence[HeadingPath], train_share: float) -> list[HeadingPath]:
    """The section of each example: what is held out as a whole."""
    return _sections(paths, _wanted(paths, train_share))


def _wanted(paths: Sequence[HeadingPath], train_share: float) -> int:
    assert 0 < train_share < 1
    return min(len(paths) - 1, max(1, round(len(paths) * (1 - train_share))))


def _pinned_sides(sections: Sequence[HeadingPath], pinned: Sequence[bool | None]) -> dict[HeadingPath, bool]:
    """The side of each section that has pinned examples: that of most of them."""
    votes: Counter[HeadingPath] = Counter()
    for section, pin in zip(sections, pinned, strict=False):
        if pin is not None:
            votes[section] += 1 if pin else -1
    return {section: vote > 0 for section, vote in votes.items()}


def _tail(count: int, wanted: int, chunks: Sequence[int] | None) -> int:
    """Where the last `wanted` of `count` examples begin, moved to the next place where a chunk begins if there is one.

    Where the last chunk has more than that, it is held out whole, unless it is the only one.
    """
    start = count - wanted
    if chunks is None or chunks[0] == chunks[-1]:
        return start
    while start < count and chunks[start] == chunks[start - 1]:
        start += 1
    if start == count:
        start -= 1
        while chunks[start] == chunks[start - 1]:
            start -= 1
    return start


def _sections(paths: Sequence[HeadingPath], limit: int) -> list[HeadingPath]:
    """Two levels of headings, and more of them where a section would hold more than `limit` examples.

    The title page of many documents is the heading of all the rest: two levels would make one section of everything.
    """
    sections = [path[: 1 + SECTION_DEPTH] for path in paths]
    for length in range(2 + SECTION_DEPTH, max((len(path) for path in paths), default=0) + 1):
        sizes = Counter(sections)
        sections = [
            path[:length] if sizes[section] > limit else section for path, section in zip(paths, sections, strict=True)
        ]
    return sections


def _shuffled(section: HeadingPath) -> str:
    return hashlib.sha256(repr(section).encode()).hexdigest()
