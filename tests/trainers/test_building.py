"""What is odd about data, model or switches becomes a warning or a named failure before the first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backend.trainers.errors import TrainerError
from tests.trainers.tiny import EVAL_ROWS, TRAIN_ROWS, ConfigMaker, Recorder, run_here, write_lines


def prepare(config: dict[str, Any]) -> tuple[Any, list[str]]:
    """What a run has before its first step, and its warnings."""
    from backend.trainers import building, memory
    from backend.trainers.config import TrainConfig, parse_config
    from backend.trainers.events import Events

    recorder = Recorder()
    prepared = building.prepare(parse_config(TrainConfig, config), Events(recorder), memory.Parts())  # type: ignore[arg-type]
    return prepared, [item["message"] for item in recorder.of("warning")]


def test_a_base_without_a_chat_template_gets_one_that_is_said_and_delivered(
    base_model: Path, tmp_path: Path, train_config: ConfigMaker
) -> None:
    from backend.trainers import loading

    base = shutil.copytree(base_model, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    events = run_here(train_config(tmp_path / "run", {"base_model": str(base)}, num_epochs=1))
    assert any("ChatML" in item["message"] for item in events.of("warning"))
    delivered = (tmp_path / "run" / "adapter" / "chat_template.jinja").read_text()
    assert delivered == loading.CHATML_TEMPLATE


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True},
        {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"},
    ],
)
def test_a_model_that_does_not_write_is_refused(
    base_model: Path, tmp_path: Path, train_config: ConfigMaker, config: dict[str, Any]
) -> None:
    base = shutil.copytree(base_model, tmp_path / "base")
    described = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**described, **config}))
    with pytest.raises(TrainerError, match="no causal language model") as caught:
        prepare(train_config(tmp_path / "run", {"base_model": str(base)}))
    assert caught.value.code == "BASE_MODEL_UNUSABLE"
    assert config["architectures"][0] in str(caught.value)


def test_a_run_of_one_step_learns(tmp_path: Path, train_config: ConfigMaker) -> None:
    """Its first step is no warm-up, whose rate begins at 0."""
    settings = {"per_device_batch_size": 64, "gradient_accumulation_steps": 4, "num_epochs": 1, "warmup_ratio": 0.03}
    complete = run_here(train_config(tmp_path / "run", **settings)).of("complete")[0]
    assert complete["steps"] == 1
    assert complete["eval_loss_tuned"] != complete["eval_loss_base"]


def test_no_held_out_examples_is_said_and_trained_all_the_same(tmp_path: Path, train_config: ConfigMaker) -> None:
    empty = write_lines(tmp_path / "eval.jsonl", [])
    events = run_here(train_config(tmp_path / "run", {"eval_file": str(empty)}, num_epochs=1))
    assert any("held-out" in item["message"] for item in events.of("warning"))
    complete = events.of("complete")[0]
    assert (complete["eval_examples"], complete["eval_loss_tuned"], complete["stopped"]) == (0, None, "finished")


def test_held_out_examples_that_are_all_too_long_are_as_none(tmp_path: Path, train_config: ConfigMaker) -> None:
    answer = {"role": "assistant", "content": "kettle " * 300}
    long = write_lines(tmp_path / "eval.jsonl", [{"messages": [EVAL_ROWS[0]["messages"][0], answer]}])
    prepared, warnings = prepare(train_config(tmp_path / "run", {"eval_file": str(long)}))
    assert prepared.held_out.examples == []
    assert len(prepared.train_set.examples) == len(TRAIN_ROWS)
    assert any("No held-out example fits" in message for message in warnings)


def test_the_models_context_limits_what_was_asked_for(tmp_path: Path, train_config: ConfigMaker) -> None:
    question = {"role": "user", "content": "Which lid? " * 300}
    rows = [*TRAIN_ROWS, {"messages": [question, EVAL_ROWS[0]["messages"][1]]}]
    train = str(write_lines(tmp_path / "train.jsonl", rows))
    prepared, warnings = prepare(train_config(tmp_path / "run", {"train_file": train}, max_seq_length=4096))
    assert prepared.longest <= 512
    assert any("the model's context of 512 tokens" in message and "question" in message for message in warnings)
    _, warnings = prepare(
        train_config(tmp_path / "run", {"train_file": train}, max_seq_length=100, long_examples="skip")
    )
    assert any("1 examples are longer than max_seq_length=100 and were left out" in message for message in warnings)


def test_switches_that_need_what_is_not_here_are_refused(
    tmp_path: Path, train_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backend.trainers import arguments

    with pytest.raises(TrainerError, match="use_liger needs a CUDA GPU") as caught:
        prepare(train_config(tmp_path / "run", use_liger=True))
    assert caught.value.code == "INVALID_CONFIG"
    monkeypatch.setattr(arguments.shutil, "which", lambda name: None)
    with pytest.raises(TrainerError, match=r"C\+\+ compiler"):
        prepare(train_config(tmp_path / "run", torch_compile=True))
