"""Compares a base model with its adapter on held-out examples: `python -m backend.trainers.evaluate CONFIG.json`."""

from __future__ import annotations

import sys
import time
from typing import Any, Literal

from backend.trainers import process
from backend.trainers.config import EvaluateConfig
from backend.trainers.errors import DATASET_UNUSABLE, TrainerError
from backend.trainers.events import Events, perplexity


def evaluate(config: EvaluateConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Write `output_file`: losses of both over the same labelled tokens, and their greedy answers side by side."""
    # Loaded late: see qlora.py.
    from backend.trainers import checkpoints, examples, loading, scoring
    from backend.trainers.answering import answer_as

    started = time.monotonic()
    events.stage("loading")
    conversations = examples.read_conversations(config.eval_file)
    if not conversations:
        raise TrainerError(DATASET_UNUSABLE, "There are no held-out examples. Generate a larger dataset first.")
    target = loading.choose_target(config.device, config.threads)
    loading.refuse_unsafe(config.base_model)
    tokenizer = loading.load_tokenizer(config.base_model)
    held_out = examples.encode_set(tokenizer, config.eval_file, config.max_seq_length)
    model = loading.load_base(config.base_model, target, four_bit=config.load_in_4bit)
    model = loading.load_adapter(model, config.adapter)

    def score(name: Literal["baseline", "evaluating"]) -> float:
        events.stage(name)
        loss = scoring.mean_loss(
            model,
            held_out.examples,
            target=target,
            pad_token_id=tokenizer.pad_token_id,
            batch_size=config.batch_size,
        )
        assert loss is not None, "nothing asks to stop"
        return loss

    with model.disable_adapter():
        base_loss = score("baseline")
    tuned_loss = score("evaluating")

    asked = conversations[: config.samples]
    answers: dict[Literal["base", "tuned"], list[str]] = {"base": [], "tuned": []}
    if asked:
        events.stage("generating")
        for variant in answers:
            answers[variant] = answer_as(
                variant,
                model,
                tokenizer,
                [messages[:-1] for messages in asked],
                target=target,
                max_new_tokens=config.max_new_tokens,
                batch_size=config.batch_size,
            )
    result: dict[str, Any] = {
        "examples": len(held_out.examples),
        "examples_skipped": held_out.skipped,
        "labelled_tokens": sum(label != examples.IGNORED for item in held_out.examples for label in item.labels[1:]),
        "eval_loss_base": base_loss,
        "eval_loss_tuned": tuned_loss,
        "perplexity_base": perplexity(base_loss),
        "perplexity_tuned": perplexity(tuned_loss),
    }
    samples = [
        {"messages": messages[:-1], "expected": messages[-1]["content"], "base": base, "tuned": tuned}
        for messages, base, tuned in zip(asked, answers["base"], answers["tuned"], strict=True)
    ]
    checkpoints.write_json(config.output_file, {**result, "samples": samples})
    events.emit("complete", status="success", duration_seconds=round(time.monotonic() - started, 3), **result)


if __name__ == "__main__":
    sys.exit(process.run(EvaluateConfig, evaluate))
