"""Optimizer steps as batches: which examples a step has, and how it is cut into parts that fit in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from backend.trainers.examples import IGNORED, Batch, Example

# So many tokens at once keep a processor busy; more of them cost memory and bring no speed.
BUSY_TOKENS = {"cpu": 1024, "cuda": 4096}


class StepSampler(Sampler[list[int]]):
    """Yields the example indices of one optimizer step at a time, shuffled anew each epoch.

    The order depends on seed and epoch alone: a resumed run sees the same steps, whatever the number of its processes.
    Each of these gets its share of a step as `deal` gives it; with fewer examples than processes some get none.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._lengths = lengths
        self._step_size = step_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0

    @property
    def batch_sampler(self) -> StepSampler:
        """The trainer calls `set_epoch` of a loader's `batch_sampler.batch_sampler`, because it expects a wrapper."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._step_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order: list[int] = torch.randperm(len(self._lengths), generator=generator).tolist()
        for start in range(0, len(order), self._step_size):
            step = order[start : start + self._step_size]
            yield step if self._world_size == 1 else deal(step, self._lengths, self._world_size)[self._rank]


def deal(step: Sequence[int], lengths: Sequence[int], hands: int) -> list[list[int]]:
    """Deal the examples of a step to `hands` processes so that each has about as many tokens: the longest first."""
    dealt: list[list[int]] = [[] for _ in range(hands)]
    tokens = [0] * hands
    for index in sorted(step, key=lambda item: -lengths[item]):
        least = tokens.index(min(tokens))
        dealt[least].append(index)
        tokens[least] += lengths[index]
    return dealt


def tokens_at_once(batch_size: int, max_length: int, longest: int, device: str) -> int:
    """How many tokens one forward pass may have.

    What the user allowed (`batch_size` examples of `max_length`), but no more than `batch_size` of the longest examples
    need, unless that leaves the processor idle.
    """
    return min(batch_size * max_length, max(batch_size * longest, BUSY_TOKENS[device]))


def parts(lengths: Sequence[int], most_tokens: int, *, padded: bool) -> list[list[int]]:
    """Cut a step into parts of at most `most_tokens` tokens, padding counted; an example that is longer stands alone.

    Returns positions in `lengths`, examples of similar length together.
    """
    order = sorted(range(len(lengths)), key=lambda position: lengths[position])
    cut: list[list[int]] = [[]]
    total = 0
    for position in order:
        # In this order the new example is the longest of its part.
        size = lengths[position] * (len(cut[-1]) + 1) if padded else total + lengths[position]
        if cut[-1] and size > most_tokens:
            cut.append([])
            total = 0
        cut[-1].append(position)
        total += lengths[position]
    return cut


def pack(examples: Sequence[Example]) -> Batch:
    """Put examples one behind the other: input_ids, position_ids and labels, each (1, tokens) int64.

    Positions start again with each example. The first token of each has no label: nothing before it predicts it.
    """
    return {
        name: torch.tensor([row], dtype=torch.int64)
        for name, row in (
            ("input_ids", [token for example in examples for token in example.input_ids]),
            ("position_ids", [place for example in examples for place in range(len(example.input_ids))]),
            ("labels", [label for example in examples for label in (IGNORED, *example.labels[1:])]),
        )
    }
