"""The strict config loader names what is wrong and what is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backend.trainers.config import GenerateConfig, TrainConfig, load_config, parse_config
from backend.trainers.errors import TrainerError

MINIMAL: dict[str, Any] = {"run_dir": "r", "base_model": "m", "base_model_id": "a/b", "train_file": "t.jsonl"}


def test_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**MINIMAL, "hyperparams": {"learning_rate": 1}}))
    config = load_config(TrainConfig, path)
    assert config.run_dir == Path("r")
    assert config.method == "lora"
    assert config.eval_file is None
    assert config.hyperparams.learning_rate == 1.0
    assert (config.hyperparams.num_epochs, config.hyperparams.lora_alpha) == (3, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 3}, ["Unknown key epochs", "run_dir", "hyperparams"]),
        ({"hyperparams": {"lr": 3}}, ["Unknown key hyperparams.lr", "learning_rate"]),
        ({"hyperparams": {"num_epochs": "3"}}, ["hyperparams.num_epochs", "int", "str"]),
        ({"hyperparams": {"num_epochs": True}}, ["hyperparams.num_epochs", "bool"]),
        ({"hyperparams": {"num_epochs": 0}}, ["num_epochs", "above 0"]),
        ({"hyperparams": {"lora_dropout": 1.0}}, ["lora_dropout", "below 1"]),
        ({"hyperparams": {"eval_steps": 0}}, ["eval_steps"]),
        ({"method": "rl"}, ["method", "lora, qlora, full, dpo", "rl"]),
        ({"base_model": ""}, ["base_model", "path"]),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(TrainerError) as caught:
        parse_config(TrainConfig, {**MINIMAL, **change})
    assert caught.value.code == "INVALID_CONFIG"
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_missing_keys_are_named() -> None:
    with pytest.raises(TrainerError, match="Missing key base_model_id, train_file"):
        parse_config(TrainConfig, {"run_dir": "r", "base_model": "m"})


def test_tuned_answers_need_an_adapter() -> None:
    prompts = [[{"role": "user", "content": "Hi"}]]
    with pytest.raises(TrainerError, match="adapter is needed"):
        parse_config(GenerateConfig, {"base_model": "m", "prompts": prompts, "output_file": "o"})
    with pytest.raises(TrainerError, match="prompts"):
        parse_config(GenerateConfig, {"base_model": "m", "prompts": [], "output_file": "o", "which": ["base"]})


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_unreadable_files_are_reported(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(TrainerError) as caught:
        load_config(TrainConfig, path)
    assert caught.value.code == "INVALID_CONFIG"
