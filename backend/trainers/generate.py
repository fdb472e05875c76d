"""Answers chat prompts by the base model, the tuned one, or both: `python -m backend.trainers.generate CONFIG.json`."""

from __future__ import annotations

import sys
import time
from typing import Any

from backend.trainers import process
from backend.trainers.config import GenerateConfig, Variant
from backend.trainers.events import Events


def generate(config: GenerateConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Write `output_file`: `{"answers": [{"messages": [...], "base": "...", "tuned": "..."}, ...]}`."""
    # Loaded late: see qlora.py.
    from backend.trainers import checkpoints, loading
    from backend.trainers.answering import answer_as
    from backend.trainers.model_pair import is_whole_model

    started = time.monotonic()
    events.stage("loading")
    target = loading.choose_target(config.device, config.threads)
    tokenizer = loading.load_tokenizer(config.base_model)
    tuned = config.adapter if "tuned" in config.which else None
    whole = tuned is not None and is_whole_model(tuned)
    models: dict[Variant, Any] = {}
    if "base" in config.which or not whole:
        model: Any = loading.load_base(config.base_model, target, four_bit=config.load_in_4bit)
        if tuned is not None and not whole:
            model = loading.load_adapter(model, tuned)
        models = {"base": model, "tuned": model}
    if whole and tuned is not None:
        models["tuned"] = loading.load_base(tuned, target)

    events.stage("generating")
    total = len(config.prompts) * len(config.which)
    answers: dict[Variant, list[str]] = {}
    answered = 0

    def report(done: int) -> None:
        events.progress(answered + done, total, f"Answered {answered + done}/{total}")

    for variant in config.which:
        answers[variant] = answer_as(
            variant,
            models[variant],
            tokenizer,
            config.prompts,
            target=target,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=config.seed,
            batch_size=config.batch_size,
            on_batch=report,
        )
        answered += len(config.prompts)
    rows = [
        {"messages": messages, **{variant: given[index] for variant, given in answers.items()}}
        for index, messages in enumerate(config.prompts)
    ]
    checkpoints.write_json(config.output_file, {"answers": rows})
    seconds = round(time.monotonic() - started, 3)
    events.emit("complete", status="success", duration_seconds=seconds, answers=len(rows))


if __name__ == "__main__":
    sys.exit(process.run(GenerateConfig, generate))
