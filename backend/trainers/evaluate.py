"""Compares a base model with what became of it on held-out examples: `python -m backend.trainers.evaluate CONFIG.json`.

Killed in the middle it goes on where it was: each batch is written down as soon as it is done.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from backend.trainers import process
from backend.trainers.config import EvaluateConfig, Variant
from backend.trainers.errors import DATASET_UNUSABLE, TrainerError
from backend.trainers.events import Events, Stage, perplexity

if TYPE_CHECKING:
    from backend.trainers.evaluation_notes import Notes
    from backend.trainers.examples import Example
    from backend.trainers.loading import Target
    from backend.trainers.model_pair import ModelPair

_VARIANTS: tuple[Variant, ...] = ("base", "tuned")
_STAGES: dict[Variant, Stage] = {"base": "baseline", "tuned": "evaluating"}
# An answer that is this much longer than the expected one is cut: the same for both models.
_LONGER, _MORE_TOKENS = 2, 32


def evaluate(config: EvaluateConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Write `output_file`: losses of both over the same labelled tokens, and their greedy answers side by side."""
    # Loaded late: see qlora.py.
    from backend.trainers import checkpoints, examples, loading
    from backend.trainers.evaluation_notes import Notes
    from backend.trainers.model_pair import ModelPair

    started = time.monotonic()
    events.stage("loading")
    conversations = examples.read_conversations(config.eval_file)
    if not conversations:
        raise TrainerError(DATASET_UNUSABLE, "There are no held-out examples. Generate a larger dataset first.")
    target = loading.choose_target(config.device, config.threads)
    loading.refuse_unsafe(config.base_model)
    tokenizer = loading.load_tokenizer(config.base_model)
    encoded = [_encode(config, tokenizer, messages) for messages in conversations]
    fitting = [number for number, item in enumerate(encoded) if len(item.input_ids) <= config.max_seq_length]
    models = ModelPair(config.base_model, config.adapter, target, four_bit=config.load_in_4bit)
    with Notes.of(config) as notes:
        for variant in _VARIANTS:
            events.stage(_STAGES[variant])
            _score(config, models, variant, encoded, fitting, tokenizer.pad_token_id, target, notes)
        asked = [
            number
            for number in (config.questions if config.questions is not None else range(config.samples))
            if number < len(conversations)
        ]
        if asked:
            events.stage("generating")
            _answer(config, models, tokenizer, conversations, encoded, asked, target, notes, events)
        result = _figures(encoded, fitting, notes)
        answers = [
            {
                "index": number,
                "messages": conversations[number][:-1],
                "expected": conversations[number][-1]["content"],
                **notes.answers[number],
            }
            for number in asked
            if number in notes.answers
        ]
        described = {**result, "questions_asked": len(asked), "answer_seconds": round(notes.seconds, 3)}
        losses = [
            {"index": number, "tokens": _labelled(encoded[number])}
            | {variant: notes.losses[variant, number] for variant in _VARIANTS}
            for number in fitting
        ]
        checkpoints.write_json(config.output_file, {**described, "losses": losses, "samples": answers})
    seconds = round(time.monotonic() - started, 3)
    events.emit("complete", status="success", duration_seconds=seconds, answers=len(answers), **described)


def _encode(config: EvaluateConfig, tokenizer: Any, messages: list[dict[str, str]]) -> Example:
    """As training does it: of what is too long the question is cut, or it stays too long and is left out."""
    from backend.trainers import examples

    found = examples.encode(tokenizer, messages)
    if len(found.input_ids) > config.max_seq_length and config.long_examples == "truncate":
        shorter = examples.shorten(tokenizer, messages, config.max_seq_length)
        return examples.encode(tokenizer, shorter) if shorter is not None else found
    return found


def _score(
    config: EvaluateConfig,
    models: ModelPair,
    variant: Variant,
    encoded: list[Example],
    fitting: list[int],
    pad_token_id: int,
    target: Target,
    notes: Notes,
) -> None:
    """Note the summed loss of each example that is not noted yet."""
    from backend.trainers.scoring import summed_losses

    waiting = [number for number in fitting if (variant, number) not in notes.losses]
    waiting.sort(key=lambda number: len(encoded[number].input_ids))
    with models.as_(variant) as model:
        for start in range(0, len(waiting), config.batch_size):
            picked = waiting[start : start + config.batch_size]
            batch = [encoded[number] for number in picked]
            found = summed_losses(model, batch, target=target, pad_token_id=pad_token_id)
            notes.add_losses(variant, dict(zip(picked, found, strict=True)))


def _answer(
    config: EvaluateConfig,
    models: ModelPair,
    tokenizer: Any,
    conversations: list[list[dict[str, str]]],
    encoded: list[Example],
    asked: list[int],
    target: Target,
    notes: Notes,
    events: Events,
) -> None:
    """Note the answers of both to each question that has none yet, in the order given, while there is time."""
    from backend.trainers.answering import answer

    waiting = [number for number in asked if number not in notes.answers]
    longest_seconds = 0.0
    for start in range(0, len(waiting), config.batch_size):
        done = len(asked) - len(waiting) + start
        events.progress(done, len(asked), f"Both models answered {done} of {len(asked)} questions")
        if config.max_seconds and notes.seconds + longest_seconds > config.max_seconds and notes.answers:
            return
        picked = waiting[start : start + config.batch_size]
        expected_tokens = max(_labelled(encoded[number]) for number in picked)
        began = time.monotonic()
        given: dict[Variant, list[str]] = {}
        for variant in _VARIANTS:
            with models.as_(variant) as model:
                given[variant] = answer(
                    model,
                    tokenizer,
                    [conversations[number][:-1] for number in picked],
                    target=target,
                    max_new_tokens=min(config.max_new_tokens, _LONGER * expected_tokens + _MORE_TOKENS),
                    batch_size=config.batch_size,
                )
        seconds = time.monotonic() - began
        longest_seconds = max(longest_seconds, seconds)
        pairs = zip(picked, given["base"], given["tuned"], strict=True)
        notes.add_answers({number: {"base": base, "tuned": tuned} for number, base, tuned in pairs}, seconds)


def _figures(encoded: list[Example], fitting: list[int], notes: Notes) -> dict[str, Any]:
    tokens = sum(_labelled(encoded[number]) for number in fitting)
    found: dict[str, Any] = {
        "examples": len(fitting),
        "examples_skipped": len(encoded) - len(fitting),
        "labelled_tokens": tokens,
    }
    for variant in _VARIANTS:
        loss = sum(notes.losses[variant, number] for number in fitting) / tokens if tokens else None
        found[f"eval_loss_{variant}"] = loss
        found[f"perplexity_{variant}"] = perplexity(loss) if loss is not None else None
    return found


def _labelled(example: Example) -> int:
    """How many tokens of it count: the first one of all has nothing before it that could foretell it."""
    from backend.trainers.examples import IGNORED

    return sum(label != IGNORED for label in example.labels[1:])


if __name__ == "__main__":
    sys.exit(process.run(EvaluateConfig, evaluate))
