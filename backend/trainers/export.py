"""Merges a run's adapter into its base and writes GGUF files of it: `python -m backend.trainers.export CONFIG.json`."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.trainers import process
from backend.trainers.config import ExportConfig
from backend.trainers.errors import ADAPTER_UNUSABLE, TrainerError
from backend.trainers.events import Events

if TYPE_CHECKING:
    from backend.trainers.loading import Target
    from backend.trainers.parity import Drift, Probe

MERGED, PROBES_FILE = "merged", "probes.json"
# Above this the weights stay in bf16 on the way: in fp32 they would need twice the memory.
FP32_BYTES = 5_000_000_000


def export(config: ExportConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Write `merged/` (a complete model folder), `model-f16.gguf` and `model-q8_0.gguf` as asked, and `probes.json`.

    The merged model must compute what base plus adapter compute, else TrainerError EXPORT_DRIFTED and nothing of it
    stays. The GGUF files are for `gguf_probe` to try.
    """
    # Loaded late: see qlora.py.
    from backend.trainers import checkpoints, gguf_writing, loading, parity

    started = time.monotonic()
    events.stage("loading")
    kinds = [kind for kind in config.formats if kind != "merged"]
    if kinds:
        gguf_writing.require_supported(loading.read_model_config(config.base_model))
    config.output_dir.mkdir(parents=True, exist_ok=True)
    target = _target(config)
    probes, drifted = _merge(config, target, events)
    parity.require_same("merged", drifted)
    events.stage("saving")
    written: list[Path] = []
    for kind in kinds:
        path = config.output_dir / f"model-{kind.removeprefix('gguf-')}.gguf"
        precision: gguf_writing.Precision = "f16" if kind == "gguf-f16" else "q8_0"
        gguf_writing.write_gguf(
            config.output_dir / MERGED, path, precision, name=config.name, license_name=config.license_name
        )
        written.append(path)
    if "merged" not in config.formats:
        shutil.rmtree(config.output_dir / MERGED)
    checkpoints.write_json(config.output_dir / PROBES_FILE, [probe.as_json() for probe in probes])
    events.emit(
        "complete",
        status="success",
        duration_seconds=round(time.monotonic() - started, 3),
        size_bytes=sum(path.stat().st_size for path in config.output_dir.rglob("*") if path.is_file()),
        drift=asdict(drifted),
    )


def _target(config: ExportConfig) -> Target:
    import torch

    from backend.trainers import loading

    loading.choose_target("cpu", config.threads)
    size = sum(path.stat().st_size for path in config.base_model.glob("*.safetensors"))
    dtype = torch.float32 if size <= FP32_BYTES else torch.bfloat16
    return loading.Target("cpu", dtype, dtype)


def _merge(config: ExportConfig, target: Target, events: Events) -> tuple[list[Probe], Drift]:
    """Write the merged folder; it appears only once it reloads. Returns what it was probed with, and its drift."""
    import torch

    from backend.trainers import checkpoints, examples, loading, merging, parity, probing
    from backend.trainers.model_pair import is_whole_model

    tuned: Any
    whole = is_whole_model(config.adapter)
    if whole:
        tuned = loading.load_base(config.adapter, target)
    else:
        tuned = loading.load_adapter(loading.load_base(config.base_model, target), config.adapter)
    # Training may have chosen a chat template; what it taught with lies beside the weights.
    own = config.adapter if (config.adapter / "tokenizer_config.json").is_file() else config.base_model
    tokenizer = loading.load_tokenizer(own)
    conversations = examples.read_conversations(config.prompts_file) if config.prompts_file is not None else []
    events.stage("generating")
    probes = probing.make_probes(tuned, tokenizer, conversations)
    if not probes:
        raise TrainerError(ADAPTER_UNUSABLE, "The tuned model gives no answer to compare exports by. Train it again.")

    events.stage("saving")
    dtype = getattr(torch, config.dtype)
    merged = tuned.to(dtype) if whole else merging.merge(tuned, dtype)
    with checkpoints.whole_folder(config.output_dir / MERGED) as folder:
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del merged, tuned
        events.stage("evaluating")
        found = probing.measure(loading.load_base(folder, target), probes)
        drifted = parity.drift(probes, found, tie=parity.LIMITS["merged"].tie)
        parity.require_same("merged", drifted)
    return probes, drifted


if __name__ == "__main__":
    sys.exit(process.run(ExportConfig, export))
