"""Merges an adapter into its base model: `python -m backend.trainers.export CONFIG.json`."""

from __future__ import annotations

import sys
import time

from backend.trainers import process
from backend.trainers.config import ExportConfig
from backend.trainers.errors import ADAPTER_UNUSABLE, TrainerError
from backend.trainers.events import Events

# bf16 keeps 8 bits of precision: merged weights round, so logits may move this much, relative to their largest.
TOLERANCE = {"bfloat16": 0.08, "float32": 1e-3}


def export(config: ExportConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Write a complete model folder; it appears only once it reloads and computes what base plus adapter compute.

    Merges in fp32 on the CPU, never into 4-bit weights: rounding there would undo part of what was learned.
    """
    # Loaded late: see qlora.py.
    import torch
    from transformers import AutoModelForCausalLM

    from backend.trainers import checkpoints, loading

    started = time.monotonic()
    events.stage("loading")
    loading.choose_target("cpu", config.threads)
    target = loading.Target("cpu", torch.float32, torch.float32)
    tokenizer = loading.load_tokenizer(config.base_model)
    tuned = loading.load_adapter(loading.load_base(config.base_model, target), config.adapter)
    probe = torch.tensor([tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"]])
    tuned.eval()
    with torch.inference_mode():
        expected = tuned(input_ids=probe).logits

    events.stage("saving")
    merged = tuned.merge_and_unload(safe_merge=True).to(getattr(torch, config.dtype))
    with checkpoints.whole_folder(config.output_dir) as folder:
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        reloaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        with torch.inference_mode():
            actual = reloaded.eval()(input_ids=probe).logits
        difference = ((actual - expected).abs().max() / expected.abs().max()).item()
        if not difference <= TOLERANCE[config.dtype]:
            message = (
                f"The merged model differs from base plus adapter (by {difference:.3f}). Export in float32 instead."
            )
            raise TrainerError(ADAPTER_UNUSABLE, message)
    size_bytes = sum(path.stat().st_size for path in config.output_dir.iterdir())
    events.emit(
        "complete",
        status="success",
        duration_seconds=round(time.monotonic() - started, 3),
        size_bytes=size_bytes,
        largest_logit_difference=difference,
    )


if __name__ == "__main__":
    sys.exit(process.run(ExportConfig, export))
