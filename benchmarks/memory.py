"""Forecasts of memory against what runs take: each method on two architectures, every run a trainer of its own.

The forecast is made as the service makes it, from the base's config.json, the hyperparameters, the lengths of the
examples and the worker's hardware report. The measure is the trainer's own `peak_memory_bytes`.
"""

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from backend.providers import bundled
from backend.providers.model_facts import ModelFacts, describe
from backend.training import hardware
from backend.training.forecasting import TEMPLATE_TOKENS, DataSize, Forecast, Machine, Work, forecast
from backend.training.sizing import Method
from benchmarks.measure import Row

# A forecast may be wrong by so many percent of what was measured.
LIMIT_PERCENT = 15.0
_SMOL = "SmolLM2-135M"
_RUN_SECONDS = 1800
_DEFAULTS = {
    "num_epochs": 2,
    "per_device_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "max_seq_length": 2048,
    "lora_r": 16,
    "lora_dropout": 0.05,
    "learning_rate": 1e-5,
}
_WORDS = "the lamp has a switch that opens on red light and makes noise when water comes near it for long".split()
# Random weights, with the bundled model's tokenizer: name, model type, shape.
_RANDOM: list[tuple[str, str, dict[str, int | bool]]] = [
    (
        "Llama 66M",
        "llama",
        {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
        },
    ),
    (
        "Qwen3 107M",
        "qwen3",
        {
            "hidden_size": 768,
            "intermediate_size": 2304,
            "num_hidden_layers": 10,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "head_dim": 64,
        },
    ),
]


@dataclass(frozen=True)
class Config:
    """One run: `words` in each question and in each answer, `pairs` of them."""

    base: str
    method: Method
    words: int = 40
    pairs: int = 16
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        changed = "".join(f", {name} {value}" for name, value in self.changes.items())
        return f"{self.base}, {self.method}, {2 * self.words} words a pair{changed}"


_CONFIGS = [
    Config("Llama 66M", "lora"),
    Config("Llama 66M", "lora", words=160, changes={"per_device_batch_size": 8, "gradient_accumulation_steps": 1}),
    Config("Llama 66M", "lora", changes={"use_dora": True}),
    Config("Llama 66M", "qlora"),
    Config("Llama 66M", "full"),
    Config(
        "Llama 66M", "dpo", words=30, pairs=4, changes={"per_device_batch_size": 2, "gradient_accumulation_steps": 2}
    ),
    Config("Qwen3 107M", "lora", changes={"lora_r": 64}),
    Config("Qwen3 107M", "full", words=20),
    Config(_SMOL, "lora", words=25),
    Config(_SMOL, "lora", changes={"lora_r": 8, "lora_dropout": 0.0}),
]


def run() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as name:
        folder = Path(name)
        bases = dict(_bases(folder))
        machine = Machine.of(asyncio.run(hardware.probe("cpu")))
        assert machine is not None, "the probe gave no answer"
        return [_measure(config, bases[config.base], machine, folder / str(n)) for n, config in enumerate(_CONFIGS)]


def _bases(folder: Path) -> Iterator[tuple[str, Path]]:
    smol = asyncio.run(bundled.convert(folder))
    yield _SMOL, smol
    for name, kind, shape in _RANDOM:
        target = folder / name.replace(" ", "-")
        described = {"model_type": kind, "max_position_embeddings": 4096, "tie_word_embeddings": True, **shape}
        # A process of its own: torch is not needed here for anything else.
        subprocess.run([sys.executable, "-c", _BUILD, str(smol), str(target), json.dumps(described)], check=True)
        yield name, target


_BUILD = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
smol, target, described = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(smol)
special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "vocab_size": 49152}
config = AutoConfig.for_model(described.pop("model_type"), **described, **special)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(target)
tokenizer.save_pretrained(target)
"""


def _measure(config: Config, base: Path, machine: Machine, folder: Path) -> Row:
    rows = list(_pairs(config, random.Random(1)))
    expected = _forecast(config, base, machine, rows)
    measured = _peak(config, base, folder, rows)
    wrong_by = 100 * abs(expected.total - measured) / measured
    told = f"forecast {expected.total / 1e9:.2f} GB, took {measured / 1e9:.2f} GB"
    return Row(f"{config.title}: {told}", wrong_by, LIMIT_PERCENT, "%", 1.0, "most")


def _forecast(config: Config, base: Path, machine: Machine, rows: list[dict[str, Any]]) -> Forecast:
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    texts = [_texts(row) for row in rows]
    counted = [[len(tokenizer.encode(text).ids) for text in pair] for pair in texts]
    lengths = [sum(counts) + TEMPLATE_TOKENS for counts in counted]
    share = sum(counts[-1] for counts in counted) / sum(lengths)
    data = DataSize(max(lengths), sum(lengths) / len(lengths), share)
    found = forecast(_facts(base), Work.of(config.method, _hyperparams(config), data), machine)
    assert found is not None, "the shape is known"
    return found


def _facts(base: Path) -> ModelFacts:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return describe(base.name, "folder", config, filenames=[path.name for path in base.iterdir()])


def _peak(config: Config, base: Path, folder: Path, rows: list[dict[str, Any]]) -> int:
    folder.mkdir()
    for name, part in (("train", rows), ("eval", rows[:2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    settings = {
        "run_dir": str(folder / "run"),
        "base_model": str(base),
        "base_model_id": "example/base",
        "train_file": str(folder / "train.jsonl"),
        "eval_file": str(folder / "eval.jsonl"),
        "method": config.method,
        "hyperparams": _hyperparams(config),
        "device": "cpu",
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "backend.trainers.qlora", str(folder / "config.json")]
    with (folder / "log").open("wb") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, timeout=_RUN_SECONDS, check=True)
    complete = json.loads(done.stdout.splitlines()[-1])
    assert complete["event"] == "complete", complete
    return int(complete["peak_memory_bytes"])


def _hyperparams(config: Config) -> dict[str, Any]:
    return {**_DEFAULTS, **config.changes}


def _pairs(config: Config, chance: random.Random) -> Iterator[dict[str, Any]]:
    def words() -> str:
        return " ".join(chance.choice(_WORDS) for _ in range(config.words))

    for _ in range(config.pairs):
        if config.method == "dpo":
            yield {"prompt": words(), "chosen": words(), "rejected": words()}
        else:
            yield {
                "messages": [{"role": "user", "content": words()}, {"role": "assistant", "content": words()}],
            }


def _texts(row: dict[str, Any]) -> list[str]:
    return [row["prompt"], row["chosen"]] if "prompt" in row else [item["content"] for item in row["messages"]]
