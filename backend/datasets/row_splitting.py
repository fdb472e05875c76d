"""Which imported rows are held out: never one of several rows that ask the same or continue one conversation."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from backend.contents.records.row import Turn
from backend.datasets.fingerprints import normalised

TRAIN, EVAL = "train", "eval"


class Asked(Protocol):
    """What a row of a file and an example have in common."""

    @property
    def instruction(self) -> str: ...
    @property
    def input(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def history(self) -> Sequence[Turn] | None: ...


class RowSplit:
    """Sees all rows of a file by `add`, all examples of the dataset by `pin`; after `decide`, `side` tells the split.

    Rows with the same instruction go together, and so do rows with the same first turns. Where that leaves the held-out
    share unmet because one instruction is asked of many inputs ("Summarise this text."), its rows are told apart by
    their inputs and earlier turns. Sides depend on the rows alone, not on their order. About 500 bytes a row.
    """

    def __init__(self, train_share: float) -> None:
        assert 0 < train_share < 1
        self._train_share = train_share
        # The keys of each row, and its fingerprint; 0 for one that has no part in the share.
        self._rows: list[tuple[int, int, int, int]] = []
        self._seen: set[int] = set()
        self._repeated: set[int] = set()
        self._pins: dict[int, str] = {}
        self._groups = _Groups()
        self._sides: dict[int, str] = {}
        self._is_fine = False

    def add(self, row: Asked, fingerprint: str, *, counts: bool) -> None:
        """A row to be divided. One that does not count, or repeats another, goes with its group."""
        keys, own = _keys(row), _short(fingerprint)
        self._rows.append((*keys, own if counts and own not in self._seen else 0))
        self._seen.update((*keys, own))

    def pin(self, example: Asked, fingerprint: str, side: str, *, is_own: bool) -> None:
        """An example that has its side: what belongs to it follows. `is_own`: a former run of this import wrote it."""
        if not is_own and _short(fingerprint) in self._seen:
            self._repeated.add(_short(fingerprint))
        for key in _keys(example):
            # Where both sides have it, it is not told to any evaluation.
            if key in self._seen and self._pins.get(key) != TRAIN:
                self._pins[key] = side

    def decide(self) -> None:
        """Gives every group its side, in an order that depends on the groups alone."""
        counted = sum(self._counts(row) for row in self._rows)
        wanted = max(1, round(counted * (1 - self._train_share))) if counted > 1 else 0
        taken, largest = self._divide(wanted)
        if taken < wanted < largest:
            self._is_fine = True
            self._divide(wanted)
        self._rows.clear()
        self._seen.clear()

    def side(self, row: Asked) -> str:
        return self._sides.get(self._groups.find(self._own(_keys(row))), TRAIN)

    def _counts(self, row: tuple[int, int, int, int]) -> bool:
        return row[3] != 0 and row[3] not in self._repeated

    def _own(self, keys: Sequence[int]) -> int:
        return keys[1] if self._is_fine else keys[0]

    def _divide(self, wanted: int) -> tuple[int, int]:
        """Returns how many rows are held out, and how many the largest group that is free to be placed has."""
        self._groups = groups = _Groups()
        for row in self._rows:
            groups.join(self._own(row), row[2])
        sizes: Counter[int] = Counter()
        pinned: dict[int, str] = {}
        for row in self._rows:
            group = groups.find(self._own(row))
            sizes[group] += self._counts(row)
            for key in (self._own(row), row[2]):
                if (side := self._pins.get(key)) is not None and pinned.get(group) != TRAIN:
                    pinned[group] = side
        self._sides = dict(pinned)
        taken = sum(sizes[group] for group, side in pinned.items() if side == EVAL)
        # The name of a group is a digest: its order is as good as a shuffled one, and always the same.
        free = sorted(sizes.keys() - pinned.keys())
        for group in free:
            if 0 < sizes[group] <= wanted - taken:
                self._sides[group] = EVAL
                taken += sizes[group]
        return taken, max((sizes[group] for group in free), default=0)


class _Groups:
    """Disjoint sets of keys, each named by its least one."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def find(self, key: int) -> int:
        root = key
        while (parent := self._parents.get(root, root)) != root:
            root = parent
        while key != root:
            self._parents[key], key = root, self._parents[key]
        return root

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        if one != other:
            self._parents[max(one, other)] = min(one, other)


def _keys(row: Asked) -> tuple[int, int, int]:
    """Digests of the instruction, of all that is asked, and of the conversation's first question and answer."""
    said = [turn["content"] for turn in row.history or () if turn["role"] != "system"]
    opening = said[:2] if len(said) > 1 else [row.instruction, row.output]
    return _digest("i", row.instruction), _digest("q", row.instruction, row.input, *said), _digest("c", *opening)


def _digest(kind: str, *texts: str) -> int:
    joined = "\x1f".join([kind, *(normalised(text) for text in texts)])
    return int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8).digest(), "big")


def _short(fingerprint: str) -> int:
    return int(fingerprint[:16], 16)
