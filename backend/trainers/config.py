"""Typed configs of the trainers and the strict loader that turns a JSON file into one."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from backend.trainers.errors import INVALID_CONFIG, TrainerError

Method = Literal["lora", "qlora", "full", "dpo"]
Device = Literal["auto", "cpu", "cuda"]
Variant = Literal["base", "tuned"]
ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class Hyperparams:
    """Hyperparameters under their public names.

    `eval_steps`, `save_steps`: every how many optimizer steps; None evaluates about once an epoch (at most ten times)
    and saves by the clock. `keep`: which weights the run delivers, those with the best evaluation or the last
    (the last ones that score better than the base model, when there are such). `early_stopping_patience`: so many
    evaluations without a new lowest loss end the run; 0 or None never. `long_examples`: cut the questions of examples
    over `max_seq_length`, or leave these out. `dpo_beta`: how firmly DPO holds on to the base model.
    """

    num_epochs: int = 3
    learning_rate: float = 2e-4
    per_device_batch_size: int = 4
    gradient_accumulation_steps: int = 4
    max_seq_length: int = 2048
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    warmup_ratio: float = 0.03
    weight_decay: float = 0.01
    seed: int = 42
    logging_steps: int = 1
    eval_steps: int | None = None
    save_steps: int | None = None
    keep: Literal["best", "last"] = "best"
    early_stopping_patience: int | None = 3
    long_examples: Literal["truncate", "skip"] = "truncate"
    use_dora: bool = False
    use_rslora: bool = False
    use_liger: bool = False
    torch_compile: bool = False
    dpo_beta: float = 0.1

    def __post_init__(self) -> None:
        positive = (
            "num_epochs learning_rate per_device_batch_size gradient_accumulation_steps max_seq_length lora_r "
            "lora_alpha logging_steps dpo_beta"
        )
        for name in positive.split():
            _require(getattr(self, name) > 0, name, "must be above 0")
        for name in ("eval_steps", "save_steps"):
            _require(getattr(self, name) is None or getattr(self, name) > 0, name, "must be above 0, or null")
        for name in ("lora_dropout", "warmup_ratio"):
            _require(0 <= getattr(self, name) < 1, name, "must be at least 0 and below 1")
        _require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        _require((self.early_stopping_patience or 0) >= 0, "early_stopping_patience", "must not be negative")
        _require(self.seed >= 0, "seed", "must not be negative")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a run is cut for the memory of this machine; None and False: as its hyperparameters say.

    `per_device_batch_size` divides the examples of a step, which stay what they are. `recompute`: activations are
    computed anew in the backward pass. `most_tokens` of one forward pass.
    """

    per_device_batch_size: int | None = None
    recompute: bool = False
    most_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("per_device_batch_size", "most_tokens"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"fit.{name}", "must be above 0, or null")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One fine-tuning run.

    `base_model` is a local folder; `base_model_id` is the name that the delivered files show. `train_file` and
    `eval_file` hold JSON lines `{"messages": [{"role", "content"}, ...]}`; for the method dpo
    `{"prompt", "chosen", "rejected"}`, each a text or a list of messages. `run_dir` receives checkpoints, then
    `adapter/` (for the method full: the whole model), `training_config.json` and `metrics.json`. `threads` 0 leaves
    torch's own choice. `checkpoint_seconds`: how often a checkpoint is made, unless `save_steps` says it by steps.
    `processes` 0: one for each visible GPU, or one on a CPU. `sharding`: whether each of them holds all of the model or
    a part; auto splits what a card has no room for. `fit` is the worker's word, and no part of what the run is: another
    may go on with it.
    """

    run_dir: Path
    base_model: Path
    base_model_id: str
    train_file: Path
    eval_file: Path | None = None
    method: Method = "lora"
    hyperparams: Hyperparams = field(default_factory=Hyperparams)
    device: Device = "auto"
    threads: int = 0
    checkpoint_seconds: float = 60.0
    processes: int = 0
    sharding: Literal["auto", "replicate", "shard"] = "auto"
    fit: Fit = field(default_factory=Fit)

    def __post_init__(self) -> None:
        _require(self.checkpoint_seconds > 0, "checkpoint_seconds", "must be above 0")
        _require(self.processes >= 0, "processes", "must not be negative")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Compare base and tuned on `eval_file`; of its examples both answer those whose numbers are in `questions`.

    `pairs_file`: preferred and rejected answers, as for the method dpo, whose likelihoods are compared. `adapter` is a
    folder with an adapter or with a whole model. `questions` None: the first `samples`. Answering ends once it took
    `max_seconds`; what was found until then is kept beside `output_file`, for a run that goes on.
    """

    base_model: Path
    adapter: Path
    eval_file: Path
    output_file: Path
    pairs_file: Path | None = None
    samples: int = 5
    questions: list[int] | None = None
    max_seconds: float = 0.0
    max_new_tokens: int = 128
    max_seq_length: int = 2048
    long_examples: Literal["truncate", "skip"] = "truncate"
    batch_size: int = 8
    load_in_4bit: bool = False
    device: Device = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        _require(self.samples >= 0, "samples", "must not be negative")
        _require(self.max_seconds >= 0, "max_seconds", "must not be negative (0 is no limit)")
        for name in ("max_new_tokens", "max_seq_length", "batch_size"):
            _require(getattr(self, name) > 0, name, "must be above 0")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Answer `prompts` (each a list of messages `{"role", "content"}`); greedy while `temperature` is 0."""

    base_model: Path
    prompts: list[list[dict[str, str]]]
    output_file: Path
    adapter: Path | None = None
    which: list[Variant] = field(default_factory=lambda: ["base", "tuned"])
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 42
    batch_size: int = 8
    load_in_4bit: bool = False
    device: Device = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        _require(bool(self.prompts) and all(self.prompts), "prompts", "must hold at least one prompt with messages")
        _require(self.max_new_tokens > 0, "max_new_tokens", "must be above 0")
        _require(self.batch_size > 0, "batch_size", "must be above 0")
        _require(self.temperature >= 0, "temperature", "must not be negative")
        _require(bool(self.which), "which", 'must name "base", "tuned" or both')
        _require("tuned" not in self.which or self.adapter is not None, "adapter", 'is needed for "tuned"')


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Merge `adapter` (or take the whole model in that folder) and write `formats` to `output_dir`.

    `prompts_file`: conversations whose questions the exports must answer alike. `name`, `license_name`: for GGUF.
    """

    base_model: Path
    adapter: Path
    output_dir: Path
    formats: list[Literal["merged", "gguf-f16", "gguf-q8_0"]] = field(default_factory=lambda: ["merged"])
    prompts_file: Path | None = None
    name: str = "model"
    license_name: str | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Turn the GGUF file `gguf_file` into a bf16 safetensors model folder `output_dir`."""

    gguf_file: Path
    output_dir: Path
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class SizingConfig:
    """Count the parameters of the model described by `config_dir/config.json`; no weights are needed."""

    config_dir: Path
    lora_r: int = 16


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Probe this machine; nothing to set."""


def load_config(config_type: type[ConfigT], path: Path) -> ConfigT:
    """Read `path` strictly: unknown, missing or mistyped keys raise TrainerError INVALID_CONFIG that names them."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError(INVALID_CONFIG, f"The config file {path} is not readable JSON: {error}.") from error
    return parse_config(config_type, data)


def parse_config(config_type: type[ConfigT], data: object, where: str = "") -> ConfigT:
    """Build a `config_type` from decoded JSON. `where` prefixes names in messages, for nested objects."""
    if not isinstance(data, dict):
        raise TrainerError(INVALID_CONFIG, f"{where or 'The config'} must be a JSON object.")
    accepted = {item.name: item for item in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(accepted)):
        raise TrainerError(
            INVALID_CONFIG,
            f"Unknown key {', '.join(where + name for name in unknown)}. Accepted: {', '.join(accepted)}.",
        )
    required = {
        name
        for name, item in accepted.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(data)):
        raise TrainerError(INVALID_CONFIG, f"Missing key {', '.join(where + name for name in missing)}.")
    hints = typing.get_type_hints(config_type)
    return config_type(**{name: _convert(hints[name], value, where + name) for name, value in data.items()})


def _convert(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(item for item in arguments if item is not type(None)), value, name)
    if origin is Literal:
        _require(value in arguments, name, f"must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin is list:
        _require(isinstance(value, list), name, "must be a list")
        return [_convert(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        _require(isinstance(value, dict), name, "must be an object")
        return {key: _convert(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return parse_config(typing.cast(type[Any], kind), value, f"{name}.")
    if kind is Path:
        _require(isinstance(value, str) and value != "", name, "must be a path")
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _require(type(value) is kind, name, f"must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def _require(condition: bool, name: str, message: str) -> None:
    if not condition:
        raise TrainerError(INVALID_CONFIG, f"{name} {message}.")
