"""Which drafts of a chunk are kept: without repeats, best first, spread over the sentences they rest on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from backend.datasets.strategies.base import ExampleDraft, InvalidReason
from backend.datasets.strategies.language import content_stems, words


def without_repeats(drafts: Sequence[ExampleDraft]) -> list[ExampleDraft]:
    """The same drafts, with each valid one that asks what an earlier one asks marked as a duplicate."""
    seen: set[tuple[str, ...]] = set()
    result = []
    for draft in drafts:
        key = (*_asked(draft.instruction), draft.input)
        if draft.is_valid and key in seen:
            draft = replace(draft, is_valid=False, invalid_reason=InvalidReason.DUPLICATE)
        elif draft.is_valid:
            seen.add(key)
        result.append(draft)
    return result


def asks_again(question: str, earlier: Iterable[str]) -> bool:
    """Whether one of the earlier questions asks the same with the same words, in whatever order."""
    asked = _asked(question)
    return any(_asked(other) == asked for other in earlier)


@lru_cache(maxsize=4096)
def _asked(question: str) -> tuple[str, ...]:
    # The question word counts: when and how often ask different things with the same content words.
    return (*words(question)[:2], *sorted(content_stems(question)))


def best_first(drafts: Sequence[ExampleDraft], wanted: int) -> list[ExampleDraft]:
    """Up to `wanted` valid drafts, one for each quote before a second one for any, by score; then all invalid ones."""
    uses: Counter[str] = Counter()
    ranked = []
    for draft in sorted((one for one in drafts if one.is_valid), key=lambda one: -float(one.meta.get("score", 1.0))):
        ranked.append((uses[draft.quote], draft))
        uses[draft.quote] += 1
    ranked.sort(key=lambda pair: pair[0])
    return [draft for _, draft in ranked[:wanted]] + [draft for draft in drafts if not draft.is_valid]
