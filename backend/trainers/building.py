"""What a run needs before its first step: data that fits, the base model with a new adapter, and the trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import prepare_model_for_kbit_training

from backend.trainers import adapters, arguments, batches, examples, loading, packing, preferences, ranks, sharding
from backend.trainers.config import Method, TrainConfig
from backend.trainers.errors import DATASET_TOO_LONG, INVALID_CONFIG, TrainerError
from backend.trainers.events import Events
from backend.trainers.examples import EncodedSet
from backend.trainers.loading import Target
from backend.trainers.memory import Parts
from backend.trainers.preferences import PreferenceSet, PreferenceTrainer
from backend.trainers.process import Cancellation
from backend.trainers.supervised import SupervisedTrainer
from backend.trainers.trainer import ResumableTrainer

_HIGH_FOR_ALL_WEIGHTS = 1e-4
_NOTHING = EncodedSet([], 0, 0)


@dataclass(frozen=True)
class Prepared:
    """Data and model of a run. `most_tokens` one forward pass may have, `longest` example that is used (tokens).

    `sharded`: the model is to be split over the processes; until the trainer does it, it waits on the CPU.
    """

    target: Target
    tokenizer: Any
    model: Any
    train_set: EncodedSet | PreferenceSet
    held_out: EncodedSet | PreferenceSet
    packed: bool
    most_tokens: int
    longest: int
    sharded: bool = False

    def figures(self) -> dict[str, Any]:
        """What the data came to, for the metrics."""
        return {
            "train_examples": len(self.train_set.examples),
            "train_examples_skipped": self.train_set.skipped,
            "train_examples_truncated": self.train_set.truncated,
            "eval_examples": len(self.held_out.examples),
            "packed": self.packed,
            "processes": ranks.count(),
            "sharded": self.sharded,
        }

    def trainer(
        self, config: TrainConfig, events: Events, cancellation: Cancellation, parts: Parts
    ) -> ResumableTrainer:
        """The method's trainer, with a new adapter on the model."""
        params = config.hyperparams
        recompute = arguments.recomputes(config, self.target, self.model.num_parameters(), parts)
        model = self.model
        if config.method == "qlora":
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recompute)
        settings = arguments.preferences if config.method == "dpo" else arguments.supervised
        shared = {
            "model": model,
            "processing_class": self.tokenizer,
            "target": self.target,
            "events": events,
            "cancellation": cancellation,
            "keep": params.keep,
            "patience": params.early_stopping_patience or 0,
            "checkpoint_seconds": config.checkpoint_seconds,
            "peft_config": None if config.method == "full" else arguments.lora(params),
            "args": settings(
                config,
                self.target,
                len(self.train_set.examples),
                parts,
                recompute=recompute,
                evaluates=bool(self.held_out.examples),
                sharded=self.sharded,
            ),
        }
        if config.method == "dpo":
            held_out = Dataset.from_list(self.held_out.examples) if self.held_out.examples else None
            train = Dataset.from_list(self.train_set.examples)
            return self._ready(PreferenceTrainer(train_dataset=train, eval_dataset=held_out, **shared))
        assert isinstance(self.train_set, EncodedSet)
        assert isinstance(self.held_out, EncodedSet)
        # The library looks at these columns, and never takes a batch from them: our trainer makes its own.
        columns = Dataset.from_list([{"input_ids": [0], "labels": [0]}])
        trainer = SupervisedTrainer(
            train_dataset=columns,
            eval_dataset=columns if self.held_out.examples else None,
            examples=self.train_set.examples,
            held_out=self.held_out.examples,
            packed=self.packed,
            most_tokens=self.most_tokens,
            **shared,
        )
        return self._ready(trainer)

    def _ready(self, trainer: ResumableTrainer) -> ResumableTrainer:
        if self.target.device == "cpu":
            adapters.fuse(trainer.model)
        return trainer


def prepare(config: TrainConfig, events: Events, parts: Parts) -> Prepared:
    """Read and encode the data, then load the model; what is odd about them becomes warnings."""
    params = config.hyperparams
    target = loading.choose_target(config.device, config.threads)
    arguments.refuse_unavailable(params, target.device)
    loading.refuse_unsafe(config.base_model)
    tokenizer = loading.load_tokenizer(config.base_model)
    if template := loading.chosen_template(tokenizer):
        events.warning(
            f"The base model has no chat template, so {template} was chosen. It is stored in the delivered tokenizer: "
            "use that one wherever the tuned model answers."
        )
    train_set, held_out = _encode(config, tokenizer, events)
    if config.method == "full":
        # Small updates vanish in 16-bit weights: these are held in 32 bits, and computed with in 16 where that works.
        target = replace(target, weights_dtype=torch.float32)
        _check_full(config, events)
    sharded = sharding.needed(config.sharding, config.method, config.base_model, target)
    model = loading.load_base(config.base_model, target, four_bit=config.method == "qlora", on_cpu=sharded)
    if config.method == "full":
        _refuse_large(model.num_parameters())
    longest = max(_length(item) for item in train_set.examples) if config.method != "dpo" else train_set.longest
    most = batches.tokens_at_once(params.per_device_batch_size, params.max_seq_length, longest, target.device)
    return Prepared(
        target=target,
        tokenizer=tokenizer,
        model=model,
        train_set=train_set,
        held_out=held_out,
        packed=config.method != "dpo" and not params.torch_compile and packing.enable(model, target),
        most_tokens=parts.tokens or min(most, config.fit.most_tokens or most),
        longest=longest,
        sharded=sharded,
    )


def read(method: Method, path: Path) -> list[Any]:
    """The rows of a data file in the method's format. Raises TrainerError DATASET_UNUSABLE."""
    return preferences.read_preferences(path) if method == "dpo" else examples.read_conversations(path)


def _encode(config: TrainConfig, tokenizer: Any, events: Events) -> tuple[Any, Any]:
    """Training and held-out set; the second may turn out empty."""
    params = config.hyperparams
    encode = preferences.encode_pairs if config.method == "dpo" else examples.encode_set
    context = loading.context_length(config.base_model)
    limit = min(params.max_seq_length, context or params.max_seq_length)
    train_set: Any = encode(tokenizer, config.train_file, limit, params.long_examples)
    held_out: Any = _NOTHING
    if config.eval_file is not None and read(config.method, config.eval_file):
        try:
            held_out = encode(tokenizer, config.eval_file, limit, params.long_examples)
        except TrainerError as error:
            if error.code != DATASET_TOO_LONG:
                raise
            events.warning(f"No held-out example fits: {error}")
    if config.eval_file is not None and not held_out.examples:
        events.warning(
            "There are no held-out examples: the run cannot stop early, cannot choose its best weights, and its last "
            "ones are delivered."
        )
    _report_long(train_set, held_out, limit, params.max_seq_length, events)
    return train_set, held_out


def _report_long(train_set: Any, held_out: Any, limit: int, asked: int, events: Events) -> None:
    named = f"max_seq_length={asked}" if limit == asked else f"the model's context of {limit} tokens"
    longest = max(train_set.longest, held_out.longest)
    remedy = "Raise max_seq_length to use all of them." if limit == asked else "Choose a base model with a longer one."
    if truncated := train_set.truncated + held_out.truncated:
        events.warning(
            f"{truncated} examples are longer than {named}: the middle of their questions was cut, their answers are "
            f"whole. The longest has {longest} tokens. {remedy}"
        )
    if skipped := train_set.skipped + held_out.skipped:
        events.warning(
            f"{skipped} examples are longer than {named} and were left out; the longest has {longest} tokens. {remedy}"
        )


def _check_full(config: TrainConfig, events: Events) -> None:
    if config.hyperparams.use_dora or config.hyperparams.use_rslora:
        raise TrainerError(
            INVALID_CONFIG, "use_dora and use_rslora are for adapters. Leave them out for the method full."
        )
    if config.hyperparams.learning_rate >= _HIGH_FOR_ALL_WEIGHTS:
        events.warning(
            f"A learning_rate of {config.hyperparams.learning_rate:g} is high for training all weights: 1e-5 to 5e-5 "
            "is usual."
        )


def _refuse_large(parameters: int) -> None:
    if parameters > arguments.FULL_PARAMETERS:
        raise TrainerError(
            INVALID_CONFIG,
            f"The method full trains models of up to {arguments.FULL_PARAMETERS / 1e9:g}B parameters, and this one has "
            f"{parameters / 1e9:.1f}B. Use lora or qlora, or choose a smaller base model.",
        )


def _length(example: examples.Example) -> int:
    return len(example.input_ids)
