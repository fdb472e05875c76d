"""Training on preferred and rejected answers: TRL's DPOTrainer with our checkpoints, events and cancel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trl import DPOTrainer

from backend.trainers import examples
from backend.trainers.errors import DATASET_TOO_LONG, DATASET_UNUSABLE, TrainerError
from backend.trainers.examples import LongExamples, Message
from backend.trainers.trainer import ResumableTrainer


@dataclass(frozen=True)
class PreferenceSet:
    """Pairs of answers to one prompt that fit, each {"prompt", "chosen", "rejected"} as lists of messages."""

    examples: list[dict[str, list[Message]]]
    skipped: int
    longest: int
    truncated: int = 0


class PreferenceTrainer(ResumableTrainer, DPOTrainer):
    """Trains an adapter towards chosen answers and away from rejected ones; the base model is the reference."""

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self.most_tokens_at_once = max(self.most_tokens_at_once, inputs["input_ids"].numel())
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def score(self) -> float | None:
        """Mean loss over the held-out pairs; ln 2 for a model that prefers neither answer more than its base does."""
        was_training = self.model.training
        self.model.eval()
        total, count = 0.0, 0
        try:
            with torch.no_grad():
                for batch in self.get_eval_dataloader():
                    if self.cancellation.requested:
                        return None
                    inputs = self._prepare_inputs(batch)
                    pairs = len(inputs["input_ids"]) // 2
                    with self.compute_loss_context_manager():
                        total += self.compute_loss(self.model, inputs).item() * pairs
                    count += pairs
        finally:
            self._metrics["eval"].clear()
            self.model.train(was_training)
        return total / max(count, 1)

    def perplexity_of(self, loss: float) -> float | None:
        """None: the loss is of preferences, not of tokens."""
        return None


def read_preferences(path: Path) -> list[dict[str, list[Message]]]:
    """Read `{"prompt", "chosen", "rejected"}` lines, each a text or a list of messages.

    Raises TrainerError DATASET_UNUSABLE that names the first bad line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainerError(DATASET_UNUSABLE, f"The dataset file {path.name} cannot be read: {error}.") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pairs.append(_checked(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise TrainerError(
                DATASET_UNUSABLE,
                f'Line {number} of {path.name} is no {{"prompt", "chosen", "rejected"}} with two different answers. '
                "Correct or remove that line.",
            ) from error
    return pairs


def encode_pairs(
    tokenizer: Any, path: Path, max_length: int, long_examples: LongExamples = "truncate"
) -> PreferenceSet:
    """The pairs of a file whose both conversations fit in `max_length` tokens, by cutting the prompt where allowed.

    Raises TrainerError DATASET_UNUSABLE for an empty file, DATASET_TOO_LONG when no pair fits.
    """
    pairs = read_preferences(path)
    if not pairs:
        raise TrainerError(DATASET_UNUSABLE, f"{path.name} holds no pairs of answers. Rate some answers first.")
    fitting = []
    longest = truncated = 0
    for pair in pairs:
        # The longer of the two decides how much of the prompt can stay.
        longer = max((pair["chosen"], pair["rejected"]), key=lambda answer: _length(tokenizer, pair["prompt"] + answer))
        length = _length(tokenizer, pair["prompt"] + longer)
        longest = max(longest, length)
        if length <= max_length:
            fitting.append(pair)
        elif long_examples == "truncate":
            shorter = examples.shorten(tokenizer, pair["prompt"] + longer, max_length)
            if shorter is not None:
                fitting.append({**pair, "prompt": shorter[:-1]})
                truncated += 1
    if not fitting:
        raise TrainerError(
            DATASET_TOO_LONG,
            f"No pair of {path.name} fits in max_seq_length={max_length} tokens. Raise it, or shorten the answers.",
        )
    return PreferenceSet(fitting, len(pairs) - len(fitting), longest, truncated)


def _length(tokenizer: Any, messages: list[Message]) -> int:
    return len(examples.encode(tokenizer, messages).input_ids)


def _checked(row: dict[str, Any]) -> dict[str, list[Message]]:
    prompt, chosen, rejected = (
        _messages(row[name], role)
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    )
    if chosen == rejected or [len(chosen), len(rejected)] != [1, 1]:
        raise ValueError("one answer each, and not the same")
    if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
        raise ValueError("answers are the assistant's")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _messages(value: Any, role: str) -> list[Message]:
    given = [{"role": role, "content": value}] if isinstance(value, str) else value
    messages = [{"role": str(message["role"]), "content": str(message["content"])} for message in given]
    if not messages or not all(message["content"].strip() for message in messages):
        raise ValueError("empty")
    return messages
