"""Training on answers: a whole optimizer step is one batch, packed without padding, and scored where labels are."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader
from trl import SFTTrainer

from backend.trainers import batches, packing, ranks
from backend.trainers.events import perplexity
from backend.trainers.examples import IGNORED, Batch, Example, collate
from backend.trainers.scoring import labelled_loss, mean_loss
from backend.trainers.trainer import ResumableTrainer


class SupervisedTrainer(ResumableTrainer, SFTTrainer):
    """Trains on `examples`, dealt to all processes; `held_out` may be empty: then nothing is evaluated.

    `most_tokens`: how many one forward pass may have. `packed`: whether the model takes examples one behind the other
    (see packing.py); else they are padded. The effective batch, over all processes, is
    `args.per_device_train_batch_size`, without accumulation in the library's loop: how a step is dealt and cut in parts
    does not change what it computes.
    """

    def __init__(
        self, *, examples: list[Example], held_out: list[Example], packed: bool, most_tokens: int, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.examples = examples
        self.held_out = held_out
        self.packed = packed
        self.most_tokens = most_tokens

    def get_train_dataloader(self) -> Any:
        # Not handed to accelerate, which would deal whole steps to the processes instead of shares of each.
        return DataLoader(
            self.examples,
            batch_sampler=batches.StepSampler(
                [len(example.input_ids) for example in self.examples],
                self.args.per_device_train_batch_size,
                self.args.seed,
                ranks.mine(),
                ranks.count(),
            ),
            collate_fn=_step,
        )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over this process's share of an optimizer step, part by part.

        Returns its share of the step's loss, a mean over labelled tokens, times the number of processes.
        """
        model.train()
        step: list[Example] = inputs["examples"]
        (labelled,) = ranks.summed(int((inputs["labels"] != IGNORED).sum()))
        cut = self._parts(step)
        loss = torch.zeros((), device=self.args.device)
        for number, part in enumerate(cut, 1):
            batch = batches.pack(part) if self.packed else collate(part, self.processing_class.pad_token_id)
            self.most_tokens_at_once = max(self.most_tokens_at_once, batch["input_ids"].numel())
            lengths = [len(item.input_ids) for item in part] if self.packed else None
            # Gradients are exchanged once a step; of a split model after each part, or each process held all of them.
            together = number == len(cut) or self.sharded
            alone = nullcontext() if together else self.accelerator.no_sync(model)
            with alone, packing.segments(lengths):
                with self.compute_loss_context_manager():
                    part_loss = self.compute_loss(
                        model, self._prepare_inputs(batch), num_items_in_batch=max(int(labelled), 1)
                    )
                self.accelerator.backward(part_loss)
            loss += part_loss.detach()
        return loss

    def _parts(self, step: list[Example]) -> list[list[Example]]:
        """A share of a step in parts that fit; all processes get as many, since they exchange weights or gradients."""
        found = batches.parts([len(item.input_ids) for item in step], self.most_tokens, padded=not self.packed)
        cut = [[step[position] for position in positions] for positions in found if positions]
        # Without labels it adds nothing to the loss and to the gradients.
        silent = Example(self.examples[0].input_ids[:2], [IGNORED] * len(self.examples[0].input_ids[:2]))
        return cut + [[silent]] * (ranks.most(len(cut)) - len(cut))

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL scores labelled positions only on CUDA, with a kernel of its own; on a CPU this does.

        So it does for a split model, whose head has no weights but in its own forward pass.
        """
        if (self.target.device == "cuda" and not self.sharded) or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, labelled = labelled_loss(model, inputs)
        # The processes' gradients are averaged, and their losses are shares of one mean.
        return loss * ranks.count() / (max(labelled, 1) if num_items_in_batch is None else num_items_in_batch)

    def score(self) -> float | None:
        """Mean loss over the held-out tokens. Weighs every token alike, where the library averages batches."""
        return mean_loss(
            self.model,
            self.held_out,
            target=self.target,
            pad_token_id=self.processing_class.pad_token_id,
            batch_size=self.args.per_device_eval_batch_size,
            stop=lambda: self.cancellation.requested,
        )

    def perplexity_of(self, loss: float) -> float | None:
        return perplexity(loss)


def _step(examples: list[Example]) -> dict[str, Any]:
    """A step as the library's loop wants it, for its counts of tokens and labels."""
    packed = batches.pack(examples)
    return {"examples": examples, "input_ids": packed["input_ids"], "labels": packed["labels"]}
