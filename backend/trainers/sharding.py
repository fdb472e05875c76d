"""A model split over the processes (FSDP): split early, put together for checkpoints, and filled from whole weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from backend.trainers import checkpoints, ranks
from backend.trainers.config import Method
from backend.trainers.errors import RUN_FOLDER_MISMATCH, TrainerError
from backend.trainers.loading import Target

# The base model's part of a card above which it is split. The rest is for the adapter's state and for activations.
_SHARE_OF_A_CARD = 0.5


def needed(asked: Literal["auto", "replicate", "shard"], method: Method, base_model: Path, target: Target) -> bool:
    """Whether the processes hold a part of the model each (FSDP), or all of it (DDP), which is faster for adapters.

    Weights in 4 bits are never split: they survive it only in a storage format of their own.
    """
    if ranks.count() == 1 or method == "qlora":
        return False
    if asked != "auto" or target.device == "cpu":
        return asked == "shard"
    if method == "full":
        return True
    files = sum(path.stat().st_size for path in base_model.glob("*.safetensors"))
    smallest: int = min(
        torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())
    )
    return files > _SHARE_OF_A_CARD * smallest


def split(model: torch.nn.Module, accelerator: Any, target: Target) -> None:
    """Leave this process its part of each layer, on its own device. Before training, so that scoring finds it split."""
    half = target.compute_dtype != torch.float32
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=target.compute_dtype if half else None,
        # Summed over processes in 16 bits, small gradients would vanish.
        reduce_dtype=torch.float32,
    )
    accelerator.state.fsdp_plugin.set_auto_wrap_policy(model)
    fsdp2_prepare_model(accelerator, model)


def rest(model: torch.nn.Module) -> None:
    """Give up weights that a forward pass put together: they would not see what is written to the parts."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is trained, whole and on the CPU, under the names of the delivered files; empty but in the first process."""
    rest(model)
    whole = {name: _whole(item) for name, item in model.named_parameters() if item.requires_grad}
    if not ranks.is_first():
        return {}
    return {ours: whole[name] for name, ours in _names(model).items()}


def fill(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give each process its part of `weights`, which only the first process needs to have.

    Raises TrainerError RUN_FOLDER_MISMATCH when they are not those of the model.
    """
    rest(model)
    parameters = dict(model.named_parameters())
    names = _names(model)
    if ranks.is_first() and set(names.values()) - set(weights):
        message = "The checkpoint's weights are not those of this model. Start a new run instead of resuming this one."
        raise TrainerError(RUN_FOLDER_MISMATCH, message)
    with torch.no_grad():
        for name, ours in names.items():
            part = parameters[name]
            assert isinstance(part, DTensor)
            whole = weights[ours] if ranks.is_first() else torch.empty(part.shape)
            whole = whole.to(part.device, part.dtype)
            part.copy_(distribute_tensor(whole, part.device_mesh, part.placements))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint holds, in the first process; empty in the others."""
    found: dict[str, torch.Tensor] = {}
    if ranks.is_first():
        for path in (*folder.glob("adapter_model.safetensors"), *folder.glob("model*.safetensors")):
            found |= load_file(path)
    return found


def save_model(model: Any, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write `weights`, all that `trained_weights` found, as the library writes the model that it has whole."""
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=weights)
        # The library names the dtype of what it holds, not of what it was given.
        dtype = next(iter(weights.values())).dtype
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        checkpoints.write_json(folder / "config.json", {**described, "dtype": str(dtype).removeprefix("torch.")})
        return
    inner = {ours: name for name, ours in _names(model).items()}
    whole = {inner[name]: item for name, item in weights.items()}
    model.save_pretrained(folder, state_dict=whole, save_embedding_layers=False)


def whole_state(value: Any) -> Any:
    """An optimizer's state with each split tensor put together on the CPU. All processes must ask."""
    if isinstance(value, DTensor):
        return _whole(value)
    if isinstance(value, dict):
        return {key: whole_state(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole_state(item) for item in value)
    return value


def split_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The reverse: a whole state, which each process has, as the parts of it that `optimizer` holds here."""
    parameters = [item for group in optimizer.param_groups for item in group["params"]]
    parts: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        part = parameters[index]
        parts[index] = {
            name: distribute_tensor(item.to(part.device), part.device_mesh, part.placements, src_data_rank=None)
            if isinstance(item, torch.Tensor) and item.shape == part.shape and isinstance(part, DTensor)
            else item
            for name, item in values.items()
        }
    return {**state, "state": parts}


def _whole(item: torch.Tensor) -> torch.Tensor:
    whole = item.detach().full_tensor() if isinstance(item, DTensor) else item.detach()
    return whole.to("cpu", copy=True)


def _names(model: torch.nn.Module) -> dict[str, str]:
    """The trained parameters' names here, and in the delivered files."""
    trained = [name for name, item in model.named_parameters() if item.requires_grad]
    if not isinstance(model, PeftModel):
        return {name: name for name in trained}
    # Which becomes which, only peft knows.
    numbered = {name: torch.tensor(number) for number, name in enumerate(trained)}
    delivered = get_peft_model_state_dict(model, state_dict=numbered, save_embedding_layers=False)
    return {trained[int(number)]: name for name, number in delivered.items()}
