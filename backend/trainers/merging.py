"""An adapter melted into its base model, layer by layer in fp32, whatever the weights are kept in."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from backend.trainers.errors import ADAPTER_UNUSABLE, TrainerError


def merge(tuned: Any, dtype: torch.dtype) -> Any:
    """The plain model that computes what base plus adapter compute, in `dtype`; `tuned` is used up.

    Only one layer at a time is held in fp32. Never for 4-bit weights: rounding there would undo part of what was
    learned. Raises TrainerError ADAPTER_UNUSABLE for weights that are no numbers.
    """
    for module in tuned.modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module.get_base_layer()
            layer.weight.data = layer.weight.data.float()
            try:
                module.merge(safe_merge=True)
            except ValueError as error:
                message = f"The adapter holds weights that are no numbers ({error}). Train it again."
                raise TrainerError(ADAPTER_UNUSABLE, message) from error
            layer.weight.data = layer.weight.data.to(dtype)
    return tuned.unload().to(dtype)
