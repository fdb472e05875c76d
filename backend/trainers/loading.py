"""Base models and tokenizers from local folders: safetensors only, no custom code, the right dtype for the device."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from backend.trainers import ranks
from backend.trainers.errors import ADAPTER_UNUSABLE, BASE_MODEL_UNUSABLE, DEVICE_UNAVAILABLE, TrainerError

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# ChatML in words that any vocabulary can spell, for tokenizers that lack ChatML's special tokens.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] + '\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Target:
    """Where to compute and how: `compute_dtype` of matrix products, `autocast` when the weights' dtype differs."""

    device: Literal["cpu", "cuda"]
    weights_dtype: torch.dtype
    compute_dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32)


def usable_cores() -> int:
    """The cores that this process may use; macOS knows only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_target(device: str, threads: int = 0) -> Target:
    """Pick device and dtypes. CUDA computes in bf16, else fp16; a CPU in bf16 where it has the instructions.

    Raises TrainerError DEVICE_UNAVAILABLE when CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise TrainerError(
            DEVICE_UNAVAILABLE,
            "No CUDA GPU is visible here. Start a worker on a machine with a GPU, or set the device to cpu.",
        )
    if device != "cpu" and available:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return Target("cuda", dtype, dtype)
    torch.set_num_threads(threads or max(1, usable_cores() // ranks.count()))
    dtype = torch.bfloat16 if cpu_has_bf16() else torch.float32
    return Target("cpu", dtype, dtype)


def cpu_has_bf16() -> bool:
    """True when the CPU multiplies bf16 natively; elsewhere bf16 is emulated and slower than fp32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in probes)


def load_base(folder: Path, target: Target, *, four_bit: bool = False, on_cpu: bool = False) -> PreTrainedModel:
    """Load the model in `folder` for `target`; with `four_bit` as NF4 with double quantisation.

    `on_cpu`: leave it there for now, because one device has no room for all of it.

    Raises TrainerError BASE_MODEL_UNUSABLE for pickled weights, custom code, or files that do not load.
    """
    refuse_unsafe(folder)
    quantization = None
    if four_bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=target.compute_dtype,
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=target.weights_dtype,
            quantization_config=quantization,
            device_map=_place(target, four_bit=four_bit, on_cpu=on_cpu),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
            raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        message = f"The base model does not load ({reason}). Download it again, or choose another base model."
        raise TrainerError(BASE_MODEL_UNUSABLE, message) from error
    if four_bit and target.device == "cpu":
        keep_gradients_exact(model)
    return model


def _place(target: Target, *, four_bit: bool, on_cpu: bool) -> dict[str, Any] | None:
    if on_cpu:
        return None
    if target.device == "cuda":
        # Of several processes each has a GPU of its own.
        return {"": torch.cuda.current_device()}
    return {"": target.device} if four_bit else None


def keep_gradients_exact(model: torch.nn.Module) -> None:
    """Forbid bitsandbytes to repack 4-bit weights for fast inference on AVX512-BF16 CPUs.

    It repacks at any forward in eval mode, and from then on drops gradients through those layers without a word.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved adapter on `model`, for inference. Raises TrainerError ADAPTER_UNUSABLE when it does not fit."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise TrainerError(ADAPTER_UNUSABLE, "There is no trained adapter here. Train the model first.")
    try:
        return PeftModel.from_pretrained(model, folder, is_trainable=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        message = f"The adapter does not fit this base model ({reason}). Use the base model it was trained on."
        raise TrainerError(ADAPTER_UNUSABLE, message) from error


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer, with a chat template (ChatML where it brings none) and a pad token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        message = "The base model's tokenizer does not load. Download the model again, or choose another base model."
        raise TrainerError(BASE_MODEL_UNUSABLE, message) from error
    if tokenizer.eos_token_id is None:
        message = "The base model's tokenizer has no end token, so answers could not end. Choose another base model."
        raise TrainerError(BASE_MODEL_UNUSABLE, message)
    if tokenizer.chat_template is None:
        spells_chatml = {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.get_vocab())
        tokenizer.chat_template = CHATML_TEMPLATE if spells_chatml else PLAIN_TEMPLATE
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def chosen_template(tokenizer: Any) -> str | None:
    """The name of the chat template that `load_tokenizer` chose; None when the tokenizer brought its own."""
    return {CHATML_TEMPLATE: "ChatML", PLAIN_TEMPLATE: "plain text"}.get(tokenizer.chat_template)


def context_length(folder: Path) -> int | None:
    """The most tokens that the model's positions allow, or None when its config does not say."""
    config = read_model_config(folder)
    text = config.get("text_config")
    value = (text if isinstance(text, dict) else config).get("max_position_embeddings")
    return value if isinstance(value, int) and value > 0 else None


def refuse_non_causal(config: dict[str, Any]) -> None:
    """Raise TrainerError BASE_MODEL_UNUSABLE for a model that does not write texts from left to right.

    The library would load some of these all the same, with a new and untrained output layer.
    """
    named = [str(name) for name in config.get("architectures") or []]
    written = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    if config.get("is_encoder_decoder") or (named and not any(name.endswith(written) for name in named)):
        raise TrainerError(
            BASE_MODEL_UNUSABLE,
            f"The architecture {', '.join(named) or config.get('model_type')} is no causal language model: it does not "
            "answer in text from left to right. Choose another base model.",
        )


def refuse_unsafe(folder: Path) -> None:
    """Raise TrainerError BASE_MODEL_UNUSABLE unless `folder` is a causal model that loads without running its code."""
    config = read_model_config(folder)
    refuse_non_causal(config)
    if "auto_map" in config:
        raise TrainerError(
            BASE_MODEL_UNUSABLE,
            "This base model brings Python code of its own (auto_map), which is never run here. Choose a base model "
            "whose architecture transformers supports by itself.",
        )
    if not any(folder.glob("*.safetensors")):
        raise TrainerError(
            BASE_MODEL_UNUSABLE,
            "This base model has no safetensors weights; pickled weights can run code and are never loaded. Choose a "
            "revision or a model with .safetensors files.",
        )


def read_model_config(folder: Path) -> dict[str, Any]:
    """The model's config.json. Raises TrainerError BASE_MODEL_UNUSABLE when there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = "The base model's folder holds no readable config.json. Download the model again."
        raise TrainerError(BASE_MODEL_UNUSABLE, message) from error
    if not isinstance(config, dict):
        raise TrainerError(BASE_MODEL_UNUSABLE, "The base model's config.json is no JSON object. Download it again.")
    return config
