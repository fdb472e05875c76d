"""The public hyperparameters under the names of TRL and peft, with what follows from data and hardware."""

from __future__ import annotations

import importlib.util
import math
import shutil
from typing import Any

import torch
from peft import LoraConfig
from trl import DPOConfig, SFTConfig

from backend.trainers import ranks
from backend.trainers.config import Hyperparams, TrainConfig
from backend.trainers.errors import INVALID_CONFIG, TrainerError
from backend.trainers.loading import Target
from backend.trainers.memory import Parts

MAX_EVALUATIONS = 10
# A model of this size in 16 bits leaves little of a common GPU to keep activations in.
RECOMPUTED_PARAMETERS = 3_000_000_000
# Weights, gradients and both moments of AdamW in 32 bits: 16 GB.
FULL_PARAMETERS = 1_000_000_000


def lora(params: Hyperparams) -> LoraConfig:
    """A new adapter for all linear layers but the output head."""
    return LoraConfig(
        r=params.lora_r,
        lora_alpha=params.lora_alpha,
        lora_dropout=params.lora_dropout,
        use_dora=params.use_dora,
        use_rslora=params.use_rslora,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def supervised(
    config: TrainConfig,
    target: Target,
    examples: int,
    parts: Parts,
    *,
    recompute: bool,
    evaluates: bool,
    sharded: bool = False,
) -> SFTConfig:
    """For SupervisedTrainer: one batch is a whole optimizer step, which it deals to the processes and cuts itself."""
    params = config.hyperparams
    step = params.per_device_batch_size * params.gradient_accumulation_steps
    return SFTConfig(
        per_device_train_batch_size=step,
        gradient_accumulation_steps=1,
        max_length=None,  # the examples arrive encoded, and those too long are already out
        dataset_kwargs={"skip_prepare_dataset": True},
        include_num_input_tokens_seen="all",  # there is no padding
        **_together(target, sharded=sharded),
        **_common(config, target, math.ceil(examples / step), parts, recompute=recompute, evaluates=evaluates),
    )


def preferences(
    config: TrainConfig,
    target: Target,
    examples: int,
    parts: Parts,
    *,
    recompute: bool,
    evaluates: bool,
    sharded: bool = False,
) -> DPOConfig:
    """For PreferenceTrainer. A batch of pairs holds two conversations of each."""
    params = config.hyperparams
    batch_size = parts.batch_size(params.per_device_batch_size, params.gradient_accumulation_steps)
    accumulation = parts.accumulation(params.per_device_batch_size, params.gradient_accumulation_steps)
    steps = math.ceil(math.ceil(examples / batch_size) / accumulation)
    return DPOConfig(
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        data_seed=params.seed,
        beta=params.dpo_beta,
        max_length=None,
        include_num_input_tokens_seen="non_padding",
        **_together(target, sharded=sharded),
        **_common(config, target, steps, parts, recompute=recompute, evaluates=evaluates),
    )


def recomputes(config: TrainConfig, target: Target, parameters: int, parts: Parts) -> bool:
    """Whether activations are computed again in the backward pass instead of kept: a third more work, less memory."""
    large = target.device == "cuda" and parameters > RECOMPUTED_PARAMETERS
    return large or config.fit.recompute or parts.recomputes


def refuse_unavailable(params: Hyperparams, device: str) -> None:
    """Raise TrainerError INVALID_CONFIG for switches that need what is not installed here."""
    if params.use_liger and (device != "cuda" or importlib.util.find_spec("liger_kernel") is None):
        raise TrainerError(
            INVALID_CONFIG,
            "use_liger needs a CUDA GPU and the package liger-kernel on the worker. Install it there, or leave "
            "use_liger out: training works without it.",
        )
    if not params.torch_compile:
        return
    if device == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++")):
        raise TrainerError(
            INVALID_CONFIG,
            "torch_compile needs a C++ compiler on a worker without GPU. Install g++, or leave torch_compile out.",
        )
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise TrainerError(
            INVALID_CONFIG, "torch_compile needs the package triton on the worker. Install it, or leave it out."
        )


def _together(target: Target, *, sharded: bool) -> dict[str, Any]:
    """How several processes share the work: each with all of the model (DDP), or with a part of each layer (FSDP)."""
    if ranks.count() == 1:
        return {}
    backend = {"ddp_backend": "gloo"} if target.device == "cpu" else {}
    if sharded:
        return {**backend, "fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}
    # Every step uses all trained weights, and nothing else changes.
    return {**backend, "ddp_find_unused_parameters": False, "ddp_broadcast_buffers": False}


def _common(
    config: TrainConfig, target: Target, steps_per_epoch: int, parts: Parts, *, recompute: bool, evaluates: bool
) -> dict[str, Any]:
    params = config.hyperparams
    on_cuda = target.device == "cuda"
    total_steps = steps_per_epoch * params.num_epochs
    return {
        "output_dir": str(config.run_dir),
        "num_train_epochs": params.num_epochs,
        "learning_rate": params.learning_rate,
        "per_device_eval_batch_size": parts.batch_size(params.per_device_batch_size * 2),
        # The first step of a warm-up has a rate of 0: a run of one step would learn nothing.
        "warmup_steps": min(math.ceil(params.warmup_ratio * total_steps), total_steps - 1),
        "weight_decay": params.weight_decay,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "optim": _optimizer(config.method, on_cuda=on_cuda),
        "seed": params.seed,
        "use_cpu": not on_cuda,
        "bf16": target.compute_dtype == torch.bfloat16,
        "fp16": target.compute_dtype == torch.float16,
        "activation_checkpointing": recompute,
        "torch_compile": params.torch_compile,
        # No field of DPOConfig and SFTConfig that may be passed as False without a warning of deprecation.
        **({"use_liger_kernel": True} if params.use_liger else {}),
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": params.eval_steps or max(steps_per_epoch, math.ceil(total_steps / MAX_EVALUATIONS)),
        "save_strategy": "steps" if params.save_steps else "no",
        "save_steps": params.save_steps or total_steps,
        "logging_steps": params.logging_steps,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": on_cuda,
        "disable_tqdm": True,
        "report_to": "none",
    }


def _optimizer(method: str, *, on_cuda: bool) -> str:
    if not on_cuda:
        return "adamw_torch"
    return "paged_adamw_8bit" if method == "qlora" else "adamw_torch_fused"
