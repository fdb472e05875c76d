"""Compares a base model with what became of it on held-out examples: `python -m backend.trainers.evaluate CONFIG.json`.

Killed in the middle it goes on where it was: each batch is written down as soon as it is done.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backend.trainers import process
from backend.trainers.config import EvaluateConfig, Variant
from backend.trainers.errors import DATASET_TOO_LONG, DATASET_UNUSABLE, TrainerError
from backend.trainers.events import Events, Stage, perplexity

if TYPE_CHECKING:
    from backend.trainers.evaluation_notes import Notes
    from backend.trainers.examples import Example, Message
    from backend.trainers.loading import Target
    from backend.trainers.model_pair import ModelPair

_VARIANTS: tuple[Variant, ...] = ("base", "tuned")
_STAGES: dict[Variant, Stage] = {"base": "baseline", "tuned": "evaluating"}
# An answer that is this much longer than the expected one is cut: the same for both models.
_LONGER, _MORE_TOKENS = 2, 32


@dataclass(frozen=True)
class HeldOut:
    """Held-out conversations as they are, cut to what a model can read, and in tokens; `fitting` are those that fit.

    `pairs` holds (preferred, rejected) answers of rated examples in tokens, and `pairs_skipped` says how many are too
    long. `limit` tokens are the most of an example, `context` of a model if it says.
    """

    conversations: list[list[Message]]
    shortened: list[list[Message]]
    encoded: list[Example]
    fitting: list[int]
    pairs: list[tuple[Example, Example]]
    pairs_skipped: int
    context: int | None


def evaluate(config: EvaluateConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Write `output_file`: losses of both over the same labelled tokens, and their greedy answers side by side."""
    # Loaded late: see qlora.py.
    from backend.trainers import checkpoints, loading
    from backend.trainers.evaluation_notes import Notes
    from backend.trainers.model_pair import ModelPair

    started = time.monotonic()
    events.stage("loading")
    loading.refuse_unsafe(config.base_model)
    tokenizer = loading.load_tokenizer(config.base_model)
    held = _read(config, tokenizer)
    target = loading.choose_target(config.device, config.threads)
    models = ModelPair(config.base_model, config.adapter, target, four_bit=config.load_in_4bit)
    with Notes.of(config) as notes:
        for variant in _VARIANTS:
            events.stage(_STAGES[variant])
            _score(config, models, variant, held, tokenizer.pad_token_id, target, notes)
        wanted = config.questions if config.questions is not None else range(config.samples)
        fitting = set(held.fitting)
        asked = [number for number in wanted if number in fitting]
        if asked:
            events.stage("generating")
            _answer(config, models, tokenizer, held, asked, target, notes, events)
        described = {
            **_figures(held, notes),
            "questions_asked": len(asked),
            "answer_seconds": round(notes.seconds, 3),
        }
        checkpoints.write_json(config.output_file, {**described, **_details(held, asked, notes)})
        answers = sum(number in notes.answers for number in asked)
    seconds = round(time.monotonic() - started, 3)
    events.emit("complete", status="success", duration_seconds=seconds, answers=answers, **described)


def _read(config: EvaluateConfig, tokenizer: Any) -> HeldOut:
    """As training does it: of what is too long the question is cut, or it stays too long and is left out."""
    from backend.trainers import examples, loading, preferences

    conversations = examples.read_conversations(config.eval_file)
    if not conversations:
        raise TrainerError(DATASET_UNUSABLE, "There are no held-out examples. Generate a larger dataset first.")
    context = loading.context_length(config.base_model)
    limit = min(config.max_seq_length, context or config.max_seq_length)
    shortened, encoded = [], []
    for messages in conversations:
        found = examples.encode(tokenizer, messages)
        if len(found.input_ids) > limit and config.long_examples == "truncate":
            shorter = examples.shorten(tokenizer, messages, limit)
            if shorter is not None:
                messages, found = shorter, examples.encode(tokenizer, shorter)
        shortened.append(messages)
        encoded.append(found)
    fitting = [number for number, item in enumerate(encoded) if len(item.input_ids) <= limit]
    pairs, skipped = [], 0
    if config.pairs_file is not None:
        try:
            rated = preferences.encode_pairs(tokenizer, config.pairs_file, limit, config.long_examples)
        except TrainerError as error:
            if error.code != DATASET_TOO_LONG:
                raise
            skipped = len(preferences.read_preferences(config.pairs_file))
        else:
            skipped = rated.skipped
            pairs = [
                (
                    examples.encode(tokenizer, pair["prompt"] + pair["chosen"]),
                    examples.encode(tokenizer, pair["prompt"] + pair["rejected"]),
                )
                for pair in rated.examples
            ]
    return HeldOut(conversations, shortened, encoded, fitting, pairs, skipped, context)


def _score(
    config: EvaluateConfig,
    models: ModelPair,
    variant: Variant,
    held: HeldOut,
    pad_token_id: int,
    target: Target,
    notes: Notes,
) -> None:
    """Note the summed loss of each example, and of both answers of each pair, that is not noted yet."""
    from backend.trainers.scoring import summed_losses

    waiting = [number for number in held.fitting if (variant, number) not in notes.losses]
    waiting.sort(key=lambda number: len(held.encoded[number].input_ids))
    pairs = [number for number in range(len(held.pairs)) if (variant, number) not in notes.pairs]
    pairs.sort(key=lambda number: len(held.pairs[number][0].input_ids))
    with models.as_(variant) as model:
        for start in range(0, len(waiting), config.batch_size):
            picked = waiting[start : start + config.batch_size]
            batch = [held.encoded[number] for number in picked]
            found = summed_losses(model, batch, target=target, pad_token_id=pad_token_id)
            notes.add_losses(variant, dict(zip(picked, found, strict=True)))
        at_once = max(1, config.batch_size // 2)
        for start in range(0, len(pairs), at_once):
            picked = pairs[start : start + at_once]
            batch = [answer for number in picked for answer in held.pairs[number]]
            found = summed_losses(model, batch, target=target, pad_token_id=pad_token_id)
            notes.add_pairs(variant, dict(zip(picked, zip(found[::2], found[1::2], strict=True), strict=True)))


def _answer(
    config: EvaluateConfig,
    models: ModelPair,
    tokenizer: Any,
    held: HeldOut,
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
        began = time.monotonic()
        given: dict[Variant, list[str]] = {}
        for variant in _VARIANTS:
            with models.as_(variant) as model:
                given[variant] = answer(
                    model,
                    tokenizer,
                    [held.shortened[number][:-1] for number in picked],
                    target=target,
                    max_new_tokens=_most_new_tokens(config, held, picked),
                    batch_size=config.batch_size,
                )
        seconds = time.monotonic() - began
        longest_seconds = max(longest_seconds, seconds)
        pairs = zip(picked, given["base"], given["tuned"], strict=True)
        notes.add_answers({number: {"base": base, "tuned": tuned} for number, base, tuned in pairs}, seconds)


def _most_new_tokens(config: EvaluateConfig, held: HeldOut, picked: list[int]) -> int:
    """Longer than the longest expected answer, but not beyond the model's context."""
    expected = max(_labelled(held.encoded[number]) for number in picked)
    most = min(config.max_new_tokens, _LONGER * expected + _MORE_TOKENS)
    if held.context is None:
        return most
    prompt = max(len(held.encoded[number].input_ids) - _labelled(held.encoded[number]) for number in picked)
    return max(1, min(most, held.context - prompt))


def _figures(held: HeldOut, notes: Notes) -> dict[str, Any]:
    tokens = sum(_labelled(held.encoded[number]) for number in held.fitting)
    found: dict[str, Any] = {
        "examples": len(held.fitting),
        "examples_skipped": len(held.encoded) - len(held.fitting),
        "labelled_tokens": tokens,
    }
    for variant in _VARIANTS:
        loss = sum(notes.losses[variant, number] for number in held.fitting) / tokens if tokens else None
        found[f"eval_loss_{variant}"] = loss
        found[f"perplexity_{variant}"] = perplexity(loss) if loss is not None else None
    return found


def _details(held: HeldOut, asked: list[int], notes: Notes) -> dict[str, Any]:
    """What stands in the file alone: the losses of each example and pair, and the answers."""
    losses = [
        {"index": number, "tokens": _labelled(held.encoded[number])}
        | {variant: notes.losses[variant, number] for variant in _VARIANTS}
        for number in held.fitting
    ]
    samples = [
        {
            "index": number,
            "messages": held.conversations[number][:-1],
            "expected": held.conversations[number][-1]["content"],
            **notes.answers[number],
        }
        for number in asked
        if number in notes.answers
    ]
    pairs = [
        {variant: list(notes.pairs[variant, number]) for variant in _VARIANTS} for number in range(len(held.pairs))
    ]
    preferences = {"pairs": pairs, "skipped": held.pairs_skipped} if pairs or held.pairs_skipped else None
    return {"losses": losses, "samples": samples, "preferences": preferences}


def _labelled(example: Example) -> int:
    """How many tokens of it count: the first one of all has nothing before it that could foretell it."""
    from backend.trainers.examples import IGNORED

    return sum(label != IGNORED for label in example.labels[1:])


if __name__ == "__main__":
    sys.exit(process.run(EvaluateConfig, evaluate))
