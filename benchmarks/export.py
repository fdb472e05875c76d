"""Merging an adapter into SmolLM2-135M and writing GGUF files of it: CPU time, peak memory, and drift."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Row

ROOT = Path(__file__).parent.parent
# Large enough that the merged model answers otherwise than its base.
_ADAPTER = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
base, folder = sys.argv[1:]
torch.manual_seed(0)
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
    LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
for name, weight in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight, std=2e-3)
model.save_pretrained(folder, save_embedding_layers=False)
AutoTokenizer.from_pretrained(base).save_pretrained(folder)
"""
_WRITE = """
import sys
from pathlib import Path
from backend.trainers.gguf_writing import write_gguf
folder, path, precision = sys.argv[1:]
write_gguf(Path(folder), Path(path), precision, name="bench")
"""
_IMPORT = "import backend.trainers.gguf_writing"


def run() -> list[Row]:
    from backend.embedded.llm import bundled_model_path

    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as temporary:
        folder = Path(temporary)
        base, adapter, out = folder / "base", folder / "adapter", folder / "out"
        _child("backend.trainers.convert", folder, {"gguf_file": str(bundled_model_path()), "output_dir": str(base)})
        _python(["-c", _ADAPTER, str(base), str(adapter)])
        weights = (base / "model.safetensors").stat().st_size
        config = {"base_model": str(base), "adapter": str(adapter), "output_dir": str(out), "formats": ["merged"]}
        merged_seconds, merged_bytes, _ = _child("backend.trainers.export", folder, config)
        _, imported_bytes, _ = _python(["-c", _IMPORT])
        rows = [
            Row("merge, reload and compare, CPU time", merged_seconds, 60, "s", 1.0, "most"),
            # fp32 weights, the merged ones beside them for a moment, and the libraries.
            Row("peak memory of it", merged_bytes / 1e6, 3 * 2 * weights / 1e6 + 900, "MB", 1.0, "most"),
        ]
        for kind, share in (("f16", 1.02), ("q8_0", 0.56)):
            path = out / f"model-{kind}.gguf"
            seconds, peak, _ = _python(["-c", _WRITE, str(out / "merged"), str(path), kind])
            probed = {
                "gguf_file": str(path),
                "probes_file": str(out / "probes.json"),
                "output_file": str(folder / "drift.json"),
                "format": f"gguf-{kind}",
            }
            _, _, complete = _child("backend.trainers.gguf_probe", folder, probed)
            drift = complete["drift"]["logprob_drift"]
            rows += [
                Row(f"write GGUF {kind}, CPU time", seconds, 30, "s", 1.0, "most"),
                # One tensor at a time: its fp32 and encoded forms, not the model.
                Row(
                    f"memory beyond the imports, {kind}",
                    (peak - imported_bytes) / 1e6,
                    weights / 1e6,
                    "MB",
                    1.5,
                    "most",
                ),
                Row(
                    f"size of {kind}, beside bf16 weights",
                    path.stat().st_size / 1e6,
                    weights / 1e6,
                    "MB",
                    share,
                    "most",
                ),
                Row(f"drift of log-probabilities, {kind}", drift, {"f16": 0.03, "q8_0": 0.08}[kind], "", 1.0, "most"),
            ]
        return rows


def _child(module: str, folder: Path, config: Mapping[str, object]) -> tuple[float, int, dict[str, dict[str, float]]]:
    """A trainer: CPU seconds, peak memory in bytes, and its `complete` event."""
    path = folder / f"{module.rpartition('.')[2]}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    seconds, peak, output = _python(["-m", module, str(path)])
    events = [json.loads(line) for line in output.splitlines()]
    return seconds, peak, next(event for event in events if event["event"] == "complete")


def _python(arguments: list[str]) -> tuple[float, int, str]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=output, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{arguments[:2]} ended with {process.returncode}: {errors.read().decode()[-1000:]}")
        # Of the CPU, not of the clock: other work on the machine does not change it.
        seconds = usage.ru_utime + usage.ru_stime
        kilo = 1 if sys.platform == "darwin" else 1024
        return seconds, usage.ru_maxrss * kilo, output.read().decode()
