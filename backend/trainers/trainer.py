"""What all our trainers add to TRL's: whole checkpoints, exact evaluation, the best weights, early stopping, cancel."""

from __future__ import annotations

import math
import random
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from backend.trainers import checkpoints, ranks, sharding
from backend.trainers.errors import TRAINING_DIVERGED, TrainerError
from backend.trainers.events import Events
from backend.trainers.loading import Target
from backend.trainers.process import Cancellation
from backend.trainers.reporting import LOWER, EndedBefore, Reporter

CHECKPOINTS_KEPT = 2
_STATE = "state"


class ResumableTrainer:
    """Mixed into a trainer of TRL: `class X(ResumableTrainer, SFTTrainer)`. Needs a `score` of the present weights."""

    # Set by the library's trainer.
    args: Any
    model: Any
    state: Any
    control: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    processing_class: Any
    callback_handler: Any
    is_fsdp_enabled: bool

    def __init__(
        self,
        *,
        target: Target,
        events: Events,
        cancellation: Cancellation,
        keep: Literal["best", "last"] = "best",
        patience: int = 0,
        checkpoint_seconds: float = 60.0,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.target = target
        self.events = events
        self.cancellation = cancellation
        self.keep = keep
        self.patience = patience
        self.checkpoint_seconds = checkpoint_seconds
        self.base_loss: float | None = None
        self.best_loss: float | None = None
        self.best_step = 0
        self.best_weights: dict[str, torch.Tensor] = {}
        self.last_loss: float | None = None
        self.last_scored_step = -1
        self.lowest_loss: float | None = None
        self.evaluations_since_lowest = 0
        self.stopped: Literal["finished", "early"] = "finished"
        self.train_seconds = 0.0
        self.most_tokens_at_once = 0
        self.add_callback(Reporter(self))  # type: ignore[attr-defined]

    def score(self) -> float | None:
        """Loss on the held-out examples; None when cancelled on the way."""
        raise NotImplementedError

    def perplexity_of(self, loss: float) -> float | None:
        """exp(loss), where the loss is a mean over tokens."""
        raise NotImplementedError

    def train_on(self, checkpoint: Path | None) -> float:
        """Train to the end, from `checkpoint` if there is one; returns the mean loss of the steps made here.

        A run that had stopped early, and was killed before it delivered, makes no step more.
        """
        try:
            output = self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)  # type: ignore[attr-defined]
        except EndedBefore:
            self.stopped = "early"
            return 0.0
        return float(output.training_loss)

    @property
    def out_of_patience(self) -> bool:
        """Whether so many evaluations were no better that the run ends."""
        return bool(self.patience) and self.evaluations_since_lowest >= self.patience

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the model."""
        return self.is_fsdp_enabled

    def split(self) -> None:
        """Where the model is to be split over the processes, do it now: nobody could hold all of it for scoring."""
        if self.sharded:
            sharding.split(self.model, self.accelerator, self.target)

    def without_training(self) -> AbstractContextManager[None]:
        """The base model's weights, while nothing is trained yet or by switching the adapter off."""
        # In a split model a switched-off adapter would be taken for one that is not trained.
        fresh = self.sharded or not isinstance(self.model, PeftModel)
        off: AbstractContextManager[None] = nullcontext() if fresh else self.model.disable_adapter()
        return off

    # Evaluation and the weights to keep

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score, remember the best weights, report, and end the run when nothing has got better for long."""
        loss = self.score()
        if loss is None:
            self.control.should_save = self.control.should_training_stop = True
            return {}
        if not math.isfinite(loss):
            step = self.state.global_step
            raise TrainerError(TRAINING_DIVERGED, f"The loss on held-out examples is no number at step {step}. {LOWER}")
        self.consider_best(loss)
        metrics = {"eval_loss": loss}
        self.log(metrics)  # type: ignore[attr-defined]
        self.events.evaluation(self.state.global_step, loss, self.perplexity_of(loss))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._stop_early(loss)
        return metrics

    def _stop_early(self, loss: float) -> None:
        if self.lowest_loss is None or loss < self.lowest_loss:
            self.lowest_loss, self.evaluations_since_lowest = loss, 0
            return
        self.evaluations_since_lowest += 1
        step = self.state.global_step
        if not self.out_of_patience or step >= self.state.max_steps:
            return
        self.stopped = "early"
        self.control.should_save = self.control.should_training_stop = True
        self.events.emit(
            "stopped",
            step=step,
            reason="early_stopping",
            message=(
                f"Stopped early at step {step} of {self.state.max_steps}: the last {self.evaluations_since_lowest} "
                f"evaluations on held-out examples were no better than {self.lowest_loss:.3f}. Set "
                "early_stopping_patience higher, or to 0, to train on."
            ),
        )

    def consider_best(self, loss: float) -> None:
        """Keep the present weights if they are to be preferred to those kept so far."""
        self.last_loss, self.last_scored_step = loss, self.state.global_step
        if prefers(self.keep, loss, self.best_loss, self.base_loss):
            self.best_loss, self.best_step = loss, self.state.global_step
            self.best_weights = self._trained_weights()

    def restore_best(self) -> None:
        if self.sharded:
            sharding.fill(self.model, self.best_weights)
            return
        if not ranks.is_first():
            return  # who delivers nothing keeps nothing
        if isinstance(self.model, PeftModel):
            set_peft_model_state_dict(self.model, self.best_weights)
            return
        with torch.no_grad():
            for name, item in self._weights().items():
                item.copy_(self.best_weights[name])

    def _trained_weights(self) -> dict[str, torch.Tensor]:
        """A copy of what is trained, on the CPU, in the process that writes."""
        if self.sharded:
            return sharding.trained_weights(self.model)
        if not ranks.is_first():
            return {}
        return {name: item.detach().to("cpu", copy=True) for name, item in self._weights().items()}

    def _weights(self) -> dict[str, torch.Tensor]:
        """What is trained: the adapter, or all of the model."""
        if isinstance(self.model, PeftModel):
            adapter: dict[str, torch.Tensor] = get_peft_model_state_dict(self.model, save_embedding_layers=False)
            return adapter
        return dict(self.model.named_parameters())

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Replaces the library's: it writes in place, pickles, and cannot tell a whole checkpoint from a torn one."""
        self.store_flos()  # type: ignore[attr-defined]
        # What the processes put together, they all must ask for; then one of them writes.
        random_states = ranks.gathered(_random_states())
        weights = sharding.trained_weights(self.model) if self.sharded else None
        optimizer = self.optimizer.state_dict()
        if self.sharded:
            optimizer = sharding.whole_state(optimizer)
        if not ranks.is_first():
            return
        run_dir = Path(self.args.output_dir)
        name = f"{checkpoints.PREFIX}{self.state.global_step}"
        with checkpoints.whole_folder(run_dir / name, manifest=True) as folder:
            save_weights(self.model, folder, weights)
            self.state.save_to_json(str(folder / "trainer_state.json"))
            checkpoints.save_tree(
                {
                    "optimizer": optimizer,
                    "scheduler": self.lr_scheduler.state_dict(),
                    "scaler": scaler.state_dict() if (scaler := self.accelerator.scaler) is not None else None,
                    "random": random_states,
                    "best": (self.best_loss, self.best_step, self.best_weights),
                    "stopping": (self.lowest_loss, self.evaluations_since_lowest),
                    "train_seconds": self.train_seconds,
                },
                folder / _STATE,
            )
        checkpoints.keep_newest(run_dir, CHECKPOINTS_KEPT)
        self.events.emit("checkpoint", step=self.state.global_step, path=name)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        if self.sharded:
            sharding.fill(self.model, sharding.read_weights(Path(checkpoint)))
        else:
            super()._load_from_checkpoint(checkpoint, model)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = checkpoints.load_tree(Path(checkpoint) / _STATE)
        optimizer = state["optimizer"]
        self.optimizer.load_state_dict(sharding.split_state(optimizer, self.optimizer) if self.sharded else optimizer)
        self.lr_scheduler.load_state_dict(state["scheduler"])
        self.best_loss, self.best_step, self.best_weights = state["best"]
        if not ranks.is_first():
            self.best_weights = {}
        self.lowest_loss, self.evaluations_since_lowest = state.get("stopping", (None, 0))
        self.train_seconds = state["train_seconds"]

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoints.load_tree(Path(checkpoint) / _STATE)["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = checkpoints.load_tree(Path(checkpoint) / _STATE)["random"]
        # One by itself was all that checkpoints once held.
        states = [states] if isinstance(states, dict) else states
        # With more processes than before some have no past: what the first drew is as random as anything for them.
        _restore_random_states(states[ranks.mine()] if ranks.mine() < len(states) else states[0])


def prefers(keep: Literal["best", "last"], loss: float, kept: float | None, base_loss: float | None) -> bool:
    """Whether new weights replace those kept so far, by their losses on the held-out examples.

    "best" keeps the lowest loss. "last" keeps what knows the training examples best: the newest weights, as long as
    they score better than the base model.
    """
    if kept is None or loss < kept:
        return True
    return keep == "last" and base_loss is not None and loss < base_loss


def save_weights(model: Any, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """The adapter, or the whole model, as safetensors; `weights` are those of a model that is split."""
    if weights is not None:
        sharding.save_model(model, folder, weights)
        return
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    model.save_pretrained(folder, **options)


def _random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])
