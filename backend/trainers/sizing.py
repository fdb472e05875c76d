"""Counts a model's parameters from its config alone: `python -m backend.trainers.sizing CONFIG.json`."""

from __future__ import annotations

import sys
from typing import Any

from backend.trainers import process
from backend.trainers.config import SizingConfig
from backend.trainers.errors import BASE_MODEL_UNUSABLE, TrainerError
from backend.trainers.events import Events


def size(config: SizingConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Emit `complete` with the counts of `count_parameters`."""
    events.emit("complete", status="success", **count_parameters(config))


def count_parameters(config: SizingConfig) -> dict[str, Any]:
    """Exact counts by building the model on the meta device, without memory or weights.

    `num_parameters` in all, `linear_parameters` in the layers that are quantised and adapted (all linear ones but the
    head), `lora_parameters` of an adapter of rank `lora_r` on those, `num_layers`, `hidden_size`.
    Raises TrainerError BASE_MODEL_UNUSABLE for unknown architectures and custom code.
    """
    # Loaded late: see qlora.py.
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from backend.trainers.loading import read_model_config

    raw = read_model_config(config.config_dir)
    if "auto_map" in raw:
        message = "This model brings Python code of its own, which is never run here. Choose another base model."
        raise TrainerError(BASE_MODEL_UNUSABLE, message)
    try:
        described = AutoConfig.from_pretrained(config.config_dir, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        architecture = raw.get("architectures") or raw.get("model_type")
        message = (
            f"The architecture {architecture} is no causal language model that transformers knows. Choose another."
        )
        raise TrainerError(BASE_MODEL_UNUSABLE, message) from error
    head = model.get_output_embeddings()
    linear = [item for item in model.modules() if isinstance(item, torch.nn.Linear) and item is not head]
    text = described.get_text_config()
    return {
        "num_parameters": model.num_parameters(),
        "linear_parameters": sum(item.weight.numel() for item in linear),
        "lora_parameters": sum(config.lora_r * (item.in_features + item.out_features) for item in linear),
        "architecture": type(model).__name__,
        "model_type": described.model_type,
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
        "max_position_embeddings": getattr(text, "max_position_embeddings", None),
    }


if __name__ == "__main__":
    sys.exit(process.run(SizingConfig, size))
