"""How many examples to ask of which chunk: by what it holds, up to what it can give."""

import math
import re
from collections.abc import Sequence

MOST_PER_CHUNK = 50
# A statement carries about this many questions before they begin to repeat each other.
EXAMPLES_PER_STATEMENT = 2
FEWEST_PER_CHUNK = 2
# The first round asks for the target; what is refused is asked for again, a little at a time.
MOST_ROUNDS = 5
# Missing less than this share of the target is not worth another round.
TOLERANCE = 0.02
# A round that adds less than this share of the target is the last one.
LEAST_GAIN = 0.02
_LEAST_YIELD = 0.2
_ASK_MORE = 1.1

_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|[。！？]|\n+")
_SHORTEST_STATEMENT, _SHORTEST_DENSE_STATEMENT = 25, 8


def statements(text: str) -> frozenset[int]:
    """Hashes of the distinct sentences, list items and rows that are long enough to say something.

    Cheap on purpose, some forty microseconds a kilobyte: it weighs chunks by the ten thousand. Hashes hold within one
    process only.
    """
    found = set()
    for piece in _END.split(text):
        piece = piece.strip(" \t#*-•|>")
        # Scripts without spaces say in eight characters what others say in twenty-five.
        least = _SHORTEST_STATEMENT if piece.isascii() or " " in piece else _SHORTEST_DENSE_STATEMENT
        if len(piece) >= least and any(map(str.isalpha, piece)):
            found.add(hash(piece.lower()))
    return frozenset(found)


def capacity(weight: int, most: int | None = None) -> int:
    """The examples that a chunk of `weight` statements can give; `most` is the caller's own cap."""
    can_give = max(FEWEST_PER_CHUNK, EXAMPLES_PER_STATEMENT * weight)
    return min(can_give, MOST_PER_CHUNK if most is None else most)


def spread(weights: Sequence[int], target: int, most: Sequence[int] | None = None) -> list[int]:
    """Shares `target` examples out over chunks by their weights, largest remainders first, none above its `most`.

    With fewer examples than chunks, the chosen chunks lie evenly over the documents. The shares add up to the target,
    or to the sum of `most` where that is less.
    """
    assert target >= 0
    limits = [target] * len(weights) if most is None else most
    takers = [index for index, limit in enumerate(limits) if limit > 0]
    counts = [0] * len(weights)
    if target < len(takers):
        for number in range(target):
            counts[takers[int((number + 0.5) * len(takers) / target)]] = 1
        return counts
    for index in takers:
        counts[index] = 1
    rest = target - len(takers)
    while rest and (takers := [index for index in takers if counts[index] < limits[index]]):
        given = _share_out([weights[index] or 1 for index in takers], rest)
        for index, share in zip(takers, given, strict=True):
            share = min(share, limits[index] - counts[index])
            counts[index] += share
            rest -= share
    return counts


def _share_out(weights: Sequence[int], amount: int) -> list[int]:
    """`amount` in whole shares in proportion to the weights, the largest remainders rounded up."""
    total = sum(weights)
    exact = [amount * weight / total for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (shares[index] - exact[index], index))
    for index in by_remainder[: amount - sum(shares)]:
        shares[index] += 1
    return shares


def is_enough(valid: int, target: int) -> bool:
    return target - valid <= TOLERANCE * target


def still_to_ask(valid: int, target: int, asked: int) -> int:
    """How many examples to ask for to get those that are missing, by what came of the `asked` ones so far."""
    if is_enough(valid, target):
        return 0
    share = min(1.0, max(_LEAST_YIELD, valid / asked if asked else 1.0))
    return math.ceil(round((target - valid) * _ASK_MORE / share, 6))
