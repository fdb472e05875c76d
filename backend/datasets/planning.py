"""How many examples to ask of which chunk."""

from collections.abc import Sequence


def spread(weights: Sequence[int], target: int) -> list[int]:
    """Shares `target` examples out over chunks by their weights (token counts), largest remainders first.

    With fewer examples than chunks, the chosen chunks lie evenly over the documents.
    """
    assert target >= 0
    if not weights:
        return []
    if target < len(weights):
        chosen = {int((number + 0.5) * len(weights) / target) for number in range(target)}
        return [int(index in chosen) for index in range(len(weights))]
    total = sum(weights) or len(weights)
    # One each, and the rest by weight.
    rest = target - len(weights)
    shares = [rest * (weight or 1) / total for weight in weights]
    counts = [1 + int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: (int(shares[index]) - shares[index], index))
    for index in by_remainder[: target - sum(counts)]:
        counts[index] += 1
    return counts
