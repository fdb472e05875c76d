"""Answers of a loaded model to chat prompts, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from backend.trainers.config import Variant
from backend.trainers.examples import Message, prompt_ids
from backend.trainers.loading import Target


def answer_as(variant: Variant, model: Any, *arguments: Any, **options: Any) -> list[str]:
    """`answer` by the base model (adapter switched off) or by the tuned one; `model` may have no adapter for "base"."""
    silent = model.disable_adapter() if variant == "base" and hasattr(model, "peft_config") else nullcontext()
    with silent:
        return answer(model, *arguments, **options)


def answer(
    model: Any,
    tokenizer: Any,
    prompts: list[list[Message]],
    *,
    target: Target,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 42,
    batch_size: int = 8,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """One answer a prompt, in the order given; greedy at temperature 0. `on_batch` hears how many are done."""
    encoded = [prompt_ids(tokenizer, messages) for messages in prompts]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    answers = [""] * len(encoded)
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    model.eval()
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        width = max(len(encoded[index]) for index in picked)
        # On the left, so that every row's answer starts at the same column.
        rows = [[tokenizer.pad_token_id] * (width - len(encoded[i])) + encoded[i] for i in picked]
        mask = [[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in picked]
        with torch.inference_mode(), target.autocast():
            output = model.generate(
                input_ids=torch.tensor(rows, device=target.device),
                attention_mask=torch.tensor(mask, device=target.device),
                max_new_tokens=max_new_tokens,
                eos_token_id=stop_tokens(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
        for index, row in zip(picked, output[:, width:], strict=True):
            answers[index] = tokenizer.decode(row, skip_special_tokens=True).strip()
        on_batch(min(start + batch_size, len(order)))
    return answers


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's end token, which training taught, and those that the model brings."""
    own = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own] if own is not None else [])})
