"""Optimizer steps: shuffled by seed and epoch alone, dealt to processes, cut in parts that fit."""

from __future__ import annotations

import pytest


def test_steps_come_in_a_new_order_each_epoch_that_a_resumed_run_repeats() -> None:
    from backend.trainers.batches import StepSampler

    lengths = [5] * 67
    sampler = StepSampler(lengths, 8, seed=3)
    assert len(sampler) == 9
    orders = []
    for epoch in range(3):
        sampler.batch_sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(index for step in orders[-1] for index in step) == list(range(67))
        assert [len(step) for step in orders[-1]] == [8] * 8 + [3]
        again = StepSampler(lengths, 8, seed=3)
        again.set_epoch(epoch)
        assert list(again) == orders[-1]
    assert orders[0] != orders[1] != orders[2]


def test_processes_share_each_step() -> None:
    from backend.trainers.batches import StepSampler

    lengths = [10 + 7 * number % 40 for number in range(17)]
    whole = list(StepSampler(lengths, 8, seed=1))
    shares = [list(StepSampler(lengths, 8, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    for step, *hands in zip(whole, *shares, strict=True):
        assert sorted(step) == sorted(hands[0] + hands[1]), "each example once"
    for first, second in zip(*(share[:-1] for share in shares), strict=True):
        tokens = [sum(lengths[index] for index in hand) for hand in (first, second)]
        assert abs(tokens[0] - tokens[1]) <= max(lengths)
    # One example is left for the last step: the other process gets none.
    assert sorted(len(share[-1]) for share in shares) == [0, 1]


@pytest.mark.parametrize("padded", [True, False])
def test_parts_stay_within_their_tokens(padded: bool) -> None:
    from backend.trainers.batches import parts

    lengths = [30, 5, 200, 31, 7, 90, 12]
    cut = parts(lengths, 100, padded=padded)
    assert sorted(position for part in cut for position in part) == list(range(7))
    for part in cut:
        sizes = [lengths[position] for position in part]
        assert len(part) == 1 or (max(sizes) * len(sizes) if padded else sum(sizes)) <= 100
    assert [lengths[position] for position in cut[-1]] == [200], "what is too long stands alone"
    assert len(cut) < 5


def test_as_many_tokens_at_once_as_the_user_allowed_or_the_processor_needs() -> None:
    from backend.trainers.batches import tokens_at_once

    assert tokens_at_once(4, 2048, longest=100, device="cpu") == 1024
    assert tokens_at_once(4, 2048, longest=600, device="cpu") == 2400
    assert tokens_at_once(1, 256, longest=100, device="cuda") == 256
