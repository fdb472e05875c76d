"""TRL's SFTTrainer with whole checkpoints, exact evaluation, labelled-only loss on CPU, events and cancel."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import TrainerCallback
from trl import SFTTrainer

from backend.trainers import checkpoints
from backend.trainers.errors import TRAINING_DIVERGED, TrainerError
from backend.trainers.events import Events
from backend.trainers.examples import Example, LengthGroupedSampler
from backend.trainers.loading import Target
from backend.trainers.process import Cancellation
from backend.trainers.scoring import labelled_loss, mean_loss

CHECKPOINTS_KEPT = 2
SAVE_INTERVAL_SECONDS = 60.0
_STATE = "state"


class AdapterTrainer(SFTTrainer):
    """Trains an adapter on prepared examples. `held_out` may be empty: then nothing is evaluated."""

    control: Any

    def __init__(
        self,
        *,
        held_out: list[Example],
        target: Target,
        events: Events,
        cancellation: Cancellation,
        keep: Literal["best", "last"] = "best",
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.held_out = held_out
        self.target = target
        self.events = events
        self.cancellation = cancellation
        self.keep = keep
        self.base_loss: float | None = None
        self.best_loss: float | None = None
        self.best_step = 0
        self.best_weights: dict[str, torch.Tensor] = {}
        self.last_loss: float | None = None
        self.last_scored_step = -1
        self.train_seconds = 0.0
        self.add_callback(Reporter(self))

    # Loss and evaluation

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL scores labelled positions only on CUDA; on a CPU this does."""
        if self.target.device == "cuda" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = {key: inputs[key] for key in ("input_ids", "attention_mask", "labels")}
        loss, labelled = labelled_loss(model, batch)
        return loss / (max(labelled, 1) if num_items_in_batch is None else num_items_in_batch)

    def score(self) -> float | None:
        """Mean loss over the held-out tokens; None when cancelled on the way."""
        return mean_loss(
            self.model,
            self.held_out,
            target=self.target,
            pad_token_id=self.processing_class.pad_token_id,
            batch_size=self.args.per_device_eval_batch_size,
            stop=lambda: self.cancellation.requested,
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score, remember the best weights, report. Weighs every token alike, where the library averages batches."""
        loss = self.score()
        if loss is None:
            self.control.should_save = self.control.should_training_stop = True
            return {}
        self.consider_best(loss)
        metrics = {"eval_loss": loss}
        self.log(metrics)
        self.events.evaluation(self.state.global_step, loss)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def consider_best(self, loss: float) -> None:
        """Keep the present weights if they are to be preferred to those kept so far."""
        self.last_loss, self.last_scored_step = loss, self.state.global_step
        if prefers(self.keep, loss, self.best_loss, self.base_loss):
            self.best_loss, self.best_step = loss, self.state.global_step
            weights = get_peft_model_state_dict(self.model, save_embedding_layers=False)
            self.best_weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}

    def restore_best(self) -> None:
        set_peft_model_state_dict(self.model, self.best_weights)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        return LengthGroupedSampler(lengths, self.args.per_device_train_batch_size, self.args.seed)

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Replaces the library's: it writes in place, pickles, and cannot tell a whole checkpoint from a torn one."""
        self.store_flos()
        run_dir = Path(self.args.output_dir)
        name = f"{checkpoints.PREFIX}{self.state.global_step}"
        with checkpoints.whole_folder(run_dir / name, manifest=True) as folder:
            self.model.save_pretrained(folder, save_embedding_layers=False)
            self.state.save_to_json(str(folder / "trainer_state.json"))
            checkpoints.save_tree(
                {
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.lr_scheduler.state_dict(),
                    "scaler": scaler.state_dict() if (scaler := self.accelerator.scaler) is not None else None,
                    "random": _random_states(),
                    "best": (self.best_loss, self.best_step, self.best_weights),
                    "train_seconds": self.train_seconds,
                },
                folder / _STATE,
            )
        checkpoints.keep_newest(run_dir, CHECKPOINTS_KEPT)
        self.events.emit("checkpoint", step=self.state.global_step, path=name)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = checkpoints.load_tree(Path(checkpoint) / _STATE)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        self.best_loss, self.best_step, self.best_weights = state["best"]
        self.train_seconds = state["train_seconds"]

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoints.load_tree(Path(checkpoint) / _STATE)["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            _restore_random_states(checkpoints.load_tree(Path(checkpoint) / _STATE)["random"])


def prefers(keep: Literal["best", "last"], loss: float, kept: float | None, base_loss: float | None) -> bool:
    """Whether new weights replace those kept so far, by their losses on the held-out examples.

    "best" keeps the lowest loss. "last" keeps what knows the training examples best: the newest weights, as long as
    they score better than the base model.
    """
    if kept is None or loss < kept:
        return True
    return keep == "last" and base_loss is not None and loss < base_loss


class Reporter(TrainerCallback):
    """Turns the trainer's steps into events, saves by the clock, and stops at the step's end on a cancel."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self._trainer = trainer
        self._step_started = 0.0
        self._tokens_before = 0
        self._seconds = 0.0
        self._last_save = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        elapsed = time.monotonic() - self._step_started
        self._seconds += elapsed
        self._trainer.train_seconds += elapsed
        due = args.save_strategy == "no" and time.monotonic() - self._last_save >= SAVE_INTERVAL_SECONDS
        if due or state.global_step >= state.max_steps:
            control.should_save = True
        if self._trainer.cancellation.requested:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last_save = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise TrainerError(
                TRAINING_DIVERGED,
                f"The training loss is no longer a number at step {state.global_step}. Lower learning_rate (a tenth is "
                "a good first try), or raise warmup_ratio, and start again.",
            )
        tokens = state.num_input_tokens_seen - self._tokens_before
        speed = tokens / self._seconds if self._seconds else None
        self._tokens_before, self._seconds = state.num_input_tokens_seen, 0.0
        events = self._trainer.events
        events.emit(
            "log",
            step=state.global_step,
            train_loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            epoch=state.epoch,
            grad_norm=logs.get("grad_norm"),
            tokens_per_second=speed,
        )
        events.progress(state.global_step, state.max_steps)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tokens_before = state.num_input_tokens_seen
        self._last_save = time.monotonic()
        self._trainer.events.progress(state.global_step, state.max_steps)


def _random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
