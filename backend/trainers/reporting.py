"""Steps of a trainer as events, saving by the clock, the end on a cancel, and the alarm when the loss explodes."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from typing import Any

from transformers import TrainerCallback

from backend.trainers import ranks
from backend.trainers.errors import TRAINING_DIVERGED, TrainerError

LOWER = "Lower learning_rate (a tenth is a good first try), or raise warmup_ratio, and start again."
# A loss that stays this much above that of the beginning is no noise: nats a token, and a share of it.
_LEAST_ABOVE, _SHARE_ABOVE = 0.5, 0.5
# The mean loss of so many examples is near that of all.
_ENOUGH_EXAMPLES = 8
# In nats a token: more than two examples' losses usually are apart.
_EXAMPLES_DIFFER = 3.0


class EndedBefore(Exception):
    """The checkpoint that a run went on from is that of its early stop: there is nothing left to train."""


class LossWatch:
    """Says when the training loss is lost: no number, or for `patience` reports in a row far above all before.

    Far above: over three times the median of the last sound losses, and over the loss that the run began with, so that
    the ups and downs of small losses raise no alarm. A ruined model need not get there: its loss stands still at that
    of guessing by the frequency of words, which may be only twice the base model's. So twice as many reports in a row
    that are half as much again above the beginning are one, too.

    `base_loss`: that of the base model, where it is known; the loss of the first report is of one batch alone.
    `step_size`: examples of a report. Where they are few, the first one may be easy: then a loss is compared with more
    reports, or must be above the beginning by more than examples differ.
    """

    def __init__(
        self,
        factor: float = 3.0,
        patience: int = 5,
        window: int = 20,
        base_loss: float | None = None,
        step_size: int = _ENOUGH_EXAMPLES,
    ) -> None:
        self._factor = factor
        self._patience = patience
        self._sound: deque[float] = deque(maxlen=window)
        self._first: float | None = None
        self._base_loss = base_loss
        self._doubt = 0.0 if base_loss is not None or step_size >= _ENOUGH_EXAMPLES else _EXAMPLES_DIFFER
        self._least_sound = 1 if step_size >= _ENOUGH_EXAMPLES else patience
        self._in_a_row = 0
        self._above_beginning = 0

    def diverged(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        if self._first is None:
            self._first = loss
        beginning = max(self._first, self._base_loss or 0.0)
        if self._stays_above(beginning + self._doubt, loss):
            return True
        enough = len(self._sound) >= self._least_sound or (self._sound and loss > beginning + _EXAMPLES_DIFFER)
        if enough and loss > max(self._factor * statistics.median(self._sound), beginning):
            self._in_a_row += 1
            return self._in_a_row >= self._patience
        self._in_a_row = 0
        self._sound.append(loss)
        return False

    def _stays_above(self, beginning: float, loss: float) -> bool:
        far = beginning + max(_SHARE_ABOVE * beginning, _LEAST_ABOVE)
        self._above_beginning = self._above_beginning + 1 if loss > far else 0
        return self._above_beginning >= 2 * self._patience


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
        step_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self._watch = LossWatch(base_loss=self._trainer.base_loss, step_size=step_size)
        for entry in state.log_history:
            if "loss" in entry:
                self._watch.diverged(entry["loss"])
        self._trainer.events.progress(state.global_step, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.out_of_patience:
            raise EndedBefore
        self._step_started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        elapsed = time.monotonic() - self._step_started
        self._seconds += elapsed
        self._trainer.train_seconds += elapsed
        due = args.save_strategy == "no" and time.monotonic() - self._last_save >= self._trainer.checkpoint_seconds
        # Each process has a clock of its own, and a signal may have reached only one.
        due, cancelled = ranks.any_of(due, self._trainer.cancellation.requested)
        if due or state.global_step >= state.max_steps:
            control.should_save = True
        if cancelled:
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
            what = f"The training loss has exploded (to {loss:.1f} at step {step}), and does not come back."
        else:
            what = f"The training loss is no longer a number at step {step}."
        raise TrainerError(TRAINING_DIVERGED, f"{what} {LOWER}")
