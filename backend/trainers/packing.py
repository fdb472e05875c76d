"""Packed batches: short examples one behind the other in one row, each attending to itself alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import is_flash_attn_2_available

from backend.trainers.loading import Target

SEGMENTED = "segmented_sdpa"
# The largest difference of packed and unpacked logits, relative to the largest logit. In bf16 rounding alone makes
# about 0.01; attention that crosses from one example into the next makes 0.3 and more.
TOLERANCE = 0.05
_PROBE_LENGTHS = (11, 7, 14)

# The lengths of the examples in the present row. Module state, because the attention function is called by the model's
# own code, in the backward pass too where activations are recomputed.
_lengths: list[int] | None = None


@contextmanager
def segments(lengths: Sequence[int] | None) -> Iterator[None]:
    """Within this block the (only) row of a batch holds examples of these lengths; it must span the backward pass."""
    global _lengths
    before, _lengths = _lengths, list(lengths) if lengths is not None else None
    try:
        yield
    finally:
        _lengths = before


def enable(model: Any, target: Target) -> bool:
    """Let `model` (without adapter) take packed batches; False when it cannot, and batches must be padded.

    Tried on the model itself: architectures that carry state along the row other than by attention are found so.
    """
    usual = model.config._attn_implementation
    if model.device.type != target.device:
        return _enable_waiting(model, target)
    if usual == "sdpa" and target.device == "cpu" and _attends_plainly(model.config.get_text_config()):
        model.set_attn_implementation(SEGMENTED)
    elif usual == "sdpa" and target.device == "cuda" and is_flash_attn_2_available():
        try:
            model.set_attn_implementation("flash_attention_2")
        except (ImportError, ValueError):
            model.set_attn_implementation(usual)
    if is_exact(model, target):
        return True
    model.set_attn_implementation(usual)
    # The library's own mask for packed rows, a square over all tokens.
    return is_exact(model, target)


def _enable_waiting(model: Any, target: Target) -> bool:
    """For a model that waits on the CPU to be split over GPUs. What matters there, the architecture, shows here too."""
    exact = is_exact(model, target)
    if exact and model.config._attn_implementation == "sdpa" and is_flash_attn_2_available():
        with suppress(ImportError, ValueError):
            model.set_attn_implementation("flash_attention_2")
    return exact


def is_exact(model: Any, target: Target) -> bool:
    """Whether a packed row gives the logits of its examples alone."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(model.config.get_text_config().vocab_size, (1, length), generator=generator).to(model.device)
        for length in _PROBE_LENGTHS
    ]
    positions = torch.cat([torch.arange(length, device=model.device) for length in _PROBE_LENGTHS]).unsqueeze(0)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), target.autocast():
            alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], dim=1).float()
            with segments(_PROBE_LENGTHS):
                packed = model(input_ids=torch.cat(rows, dim=1), position_ids=positions, use_cache=False).logits.float()
    except (TypeError, ValueError, IndexError, NotImplementedError):
        return False  # an architecture that takes no positions
    finally:
        model.train(was_training)
    return bool((packed - alone).abs().max() <= TOLERANCE * alone.abs().max())


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each segment; (1, heads, tokens, size) in, (1, tokens, heads, size) out.

    On a CPU a call for each example is the fastest way: it needs no mask, and does no work across examples.
    """
    if _lengths is None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output
    window = options.get("sliding_window")
    done = [
        sdpa_attention_forward(module, q, k, v, _window_mask(q.shape[2], window, q.device), **options)[0]
        for q, k, v in zip(*(item.split(_lengths, dim=2) for item in (query, key, value)), strict=True)
    ]
    return torch.cat(done, dim=1), None


def _mask(*arguments: Any, **options: Any) -> Any:
    return None if _lengths is not None else sdpa_mask(*arguments, **options)


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """None, which means causal, unless the example is longer than the model's sliding window."""
    if window is None or length <= window:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return ((distance >= 0) & (distance < window))[None, None]


def _attends_plainly(config: Any) -> bool:
    """Whether all layers attend causally to the whole example, or to a sliding window of it."""
    kinds = set(getattr(config, "layer_types", None) or ())
    plain = kinds <= {"full_attention", "sliding_attention"}
    return plain and not getattr(config, "attention_chunk_size", None)


AttentionInterface.register(SEGMENTED, attend)
AttentionMaskInterface.register(SEGMENTED, _mask)
