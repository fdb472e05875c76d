"""Losses over labelled positions only: the head, the dearest layer on a CPU, never sees the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from backend.trainers import ranks
from backend.trainers.examples import IGNORED, Batch, Example, collate
from backend.trainers.loading import Target


def labelled_loss(model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy over the labelled tokens of `batch`, and how many they are.

    Equals the model's own loss times the count, while only the positions whose successor has a label pass the head.
    """
    targets = batch["labels"][:, 1:]
    mask = targets != IGNORED
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with _head_sees_only(model, mask):
        logits = model(**inputs, use_cache=False).logits.squeeze(0)
    return functional.cross_entropy(logits.float(), targets[mask], reduction="sum"), int(mask.sum())


def mean_loss(
    model: Any,
    examples: Sequence[Example],
    *,
    target: Target,
    pad_token_id: int,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean loss over all labelled tokens of `examples`; None when `stop` asked to give up on the way.

    Several processes share the work, and all return the same.
    """
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        with torch.no_grad(), target.autocast():
            cut = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
            for picked, counts in ranks.dealt(cut):
                if any(ranks.any_of(stop())):
                    return None
                batch = collate(picked, pad_token_id)
                loss, labelled = labelled_loss(model, {key: value.to(target.device) for key, value in batch.items()})
                total += loss.item() * counts
                count += labelled * counts
    finally:
        model.train(was_training)
    total, labels = ranks.summed(total, count)
    return total / max(labels, 1)


def summed_losses(model: Any, examples: Sequence[Example], *, target: Target, pad_token_id: int) -> list[float]:
    """The loss of each example, summed over its labelled tokens; they make one batch."""
    batch = {key: value.to(target.device) for key, value in collate(examples, pad_token_id).items()}
    targets = batch["labels"][:, 1:]
    mask = targets != IGNORED
    model.eval()
    with torch.inference_mode(), target.autocast(), _head_sees_only(model, mask):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits.squeeze(0)
    each = functional.cross_entropy(logits.float(), targets[mask], reduction="none")
    rows = mask.nonzero()[:, 0]
    sums = torch.zeros(len(examples), device=each.device).index_add(0, rows, each)
    return [float(value) for value in sums.tolist()]


@contextmanager
def _head_sees_only(model: Any, mask: torch.Tensor) -> Iterator[None]:
    """Within the block the output head receives (1, selected, hidden) instead of (batch, tokens, hidden).

    A hook, because it leaves what the architecture does after the head (scaling, soft caps) in place.
    """

    def select(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0][:, :-1][mask].unsqueeze(0), *arguments[1:])

    inner = model.module if isinstance(model, DistributedDataParallel) else model
    hook = inner.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
