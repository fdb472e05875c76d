"""Steps of a trainer as events, saving by the clock, the end on a cancel, and the alarm when the loss explodes."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from typing import Any

from transformers import TrainerCallback

from backend.trainers.errors import TRAINING_DIVERGED, TrainerError

SAVE_INTERVAL_SECONDS = 60.0
LOWER = "Lower learning_rate (a tenth is a good first try), or raise warmup_ratio, and start again."


class LossWatch:
    """Says when the training loss is lost: no number, or for `patience` reports in a row far above all before.

    Far above: over three times the median of the last sound losses, and over the loss that the run began with, so that
    the ups and downs of small losses raise no alarm.
    """

    def __init__(self, factor: float = 3.0, patience: int = 5, window: int = 20) -> None:
        self._factor = factor
        self._patience = patience
        self._sound: deque[float] = deque(maxlen=window)
        self._first: float | None = None
        self._in_a_row = 0

    def diverged(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        if self._first is None:
            self._first = loss
        if self._sound and loss > max(self._factor * statistics.median(self._sound), self._first):
            self._in_a_row += 1
            return self._in_a_row >= self._patience
        self._in_a_row = 0
        self._sound.append(loss)
        return False


class Reporter(TrainerCallback):
    """Turns the trainer's steps into events, saves by the clock, and stops at the step's end on a cancel."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._step_started = 0.0
        self._tokens_before = 0
        self._seconds = 0.0
        self._last_save = time.monotonic()
        self._watch = LossWatch()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tokens_before = state.num_input_tokens_seen
        self._last_save = time.monotonic()
        self._watch = LossWatch()
        for entry in state.log_history:
            if "loss" in entry:
                self._watch.diverged(entry["loss"])
        self._trainer.events.progress(state.global_step, state.max_steps)

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
        self._check(logs["loss"], state.global_step)
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

    def _check(self, loss: float, step: int) -> None:
        if not self._watch.diverged(loss):
            return
        if math.isfinite(loss):
            what = f"The training loss has exploded (to {loss:.1f} at step {step})."
        else:
            what = f"The training loss is no longer a number at step {step}."
        raise TrainerError(TRAINING_DIVERGED, f"{what} {LOWER}")
