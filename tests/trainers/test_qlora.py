"""Fine-tuning: it learns, delivers whole artefacts, resumes to the same weights after SIGKILL, explains failures."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from backend.trainers.errors import Cancelled, TrainerError, from_exception
from tests.trainers.tiny import Child, ConfigMaker, Recorder, run_here

Trained = tuple[Path, Recorder]


def test_lora_learns_and_reports(trained: Trained) -> None:
    run_dir, events = trained
    complete = events.of("complete")[0]
    assert complete["status"] == "success"
    assert complete["eval_loss_tuned"] < 0.5 * complete["eval_loss_base"]
    assert complete["final_train_loss"] < 0.5 * events.of("log")[0]["train_loss"]
    assert [item["name"] for item in events.of("stage")] == ["loading", "baseline", "training", "evaluating", "saving"]
    logs = events.of("log")
    assert [item["step"] for item in logs] == list(range(1, complete["steps"] + 1))
    assert set(logs[0]) == {
        "event",
        "step",
        "train_loss",
        "learning_rate",
        "epoch",
        "grad_norm",
        "tokens_per_second",
    }
    assert all(item["grad_norm"] > 0 and item["tokens_per_second"] > 0 for item in logs)
    assert events.of("progress")[-1] == {
        "event": "progress",
        "progress_pct": 100,
        "message": "Step 24/24",
        "step": 24,
        "total_steps": 24,
    }
    evaluated = events.of("eval")
    assert [item["step"] for item in evaluated] == [0, 4, 8, 12, 16, 20, 24]
    assert evaluated[0]["eval_loss"] == complete["eval_loss_base"]
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["eval_loss_tuned"] == complete["eval_loss_tuned"]
    assert metrics["num_tokens"] > 0
    assert metrics["train_seconds"] > 0
    assert metrics["versions"]["trl"]
    assert len(metrics["history"]) >= 24


def test_the_delivered_folder_is_complete_portable_and_free_of_pickles(trained: Trained) -> None:
    run_dir, _ = trained
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    assert {
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/tokenizer.json",
        "adapter/chat_template.jinja",
        "training_config.json",
        "metrics.json",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]
    config = json.loads((run_dir / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "example/tiny"
    for path in run_dir.rglob("*.json"):
        assert str(run_dir.parent) not in path.read_text(), f"{path.name} shows a path of this machine"


def test_a_finished_run_reports_again_without_training(trained: Trained, train_config: ConfigMaker) -> None:
    run_dir, first = trained
    again = run_here(train_config(run_dir, keep="last"))
    assert again.of("complete") == first.of("complete")
    assert not again.of("log")


def test_other_settings_do_not_resume_a_run(trained: Trained, train_config: ConfigMaker) -> None:
    with pytest.raises(TrainerError) as caught:
        run_here(train_config(trained[0], keep="last", lora_r=4))
    assert caught.value.code == "RUN_FOLDER_MISMATCH"


def test_after_sigkill_a_run_ends_with_the_same_weights(
    tmp_path: Path, trained: Trained, train_config: ConfigMaker, start_child: Callable[..., Child]
) -> None:
    """The newest checkpoint is torn on purpose: the one before must be taken, in mid-epoch, with dropout on."""
    import torch
    from safetensors.torch import load_file

    run_dir = tmp_path / "run"
    config = train_config(run_dir, keep="last", save_steps=3)
    reference = train_config(tmp_path / "reference", keep="last", save_steps=3)
    child = start_child("qlora", config)
    child.read_until("checkpoint", 3)
    child.process.send_signal(signal.SIGKILL)
    assert child.finish() == -signal.SIGKILL
    newest = max(run_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert not list(newest.glob("*.p*t*"))
    assert not list(newest.glob("*.bin"))
    os.truncate(newest / "adapter_model.safetensors", 1000)

    resumed = run_here(config)
    first = resumed.of("log")[0]["step"]
    assert 1 < first <= int(newest.name.split("-")[1]), "it went on from the checkpoint before the torn one"
    assert resumed.of("resumed") == [{"event": "resumed", "step": first - 1}]
    assert 0 not in [item["step"] for item in resumed.of("eval")], "the base model's loss was told before"
    whole = run_here(reference)
    assert whole.of("log")[0]["step"] == 1
    assert not whole.of("resumed")
    ours = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "reference" / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # Saving at other steps changes nothing either.
    never_saved = load_file(trained[0] / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(ours[name], never_saved[name]) for name in ours)
    mine, other = (json.loads((folder / "metrics.json").read_text()) for folder in (run_dir, tmp_path / "reference"))
    for key in ("eval_loss_base", "eval_loss_tuned", "num_tokens", "steps", "final_train_loss"):
        assert mine[key] == other[key], key
    assert [entry.get("loss") for entry in mine["history"]] == [entry.get("loss") for entry in other["history"]]


def test_checkpoints_are_made_by_the_clock(tmp_path: Path, train_config: ConfigMaker) -> None:
    fields = {"checkpoint_seconds": 1e-6, "eval_file": None}
    often = run_here(train_config(tmp_path / "often", fields, num_epochs=1)).of("checkpoint")
    assert [item["step"] for item in often] == [1, 2, 3, 4]


def test_a_worker_with_less_memory_may_go_on_with_a_run(tmp_path: Path, train_config: ConfigMaker) -> None:
    """How a step is cut is each worker's own matter; what is in it is not."""
    from backend.trainers.config import TrainConfig, parse_config
    from backend.trainers.qlora import claim

    (tmp_path / "run").mkdir()

    def begin(size: int, accumulation: int) -> None:
        cut = {"per_device_batch_size": size, "gradient_accumulation_steps": accumulation}
        claim(parse_config(TrainConfig, train_config(tmp_path / "run", **cut)))

    begin(4, 2)
    begin(2, 4)
    begin(1, 8)
    with pytest.raises(TrainerError) as caught:
        begin(2, 2)
    assert caught.value.code == "RUN_FOLDER_MISMATCH"


def test_qlora_learns(tmp_path: Path, train_config: ConfigMaker) -> None:
    events = run_here(train_config(tmp_path / "run", {"method": "qlora"}, num_epochs=4))
    complete = events.of("complete")[0]
    assert complete["eval_loss_tuned"] < 0.7 * complete["eval_loss_base"]


def test_the_best_adapter_is_kept(tmp_path: Path, train_config: ConfigMaker, base_model: Path) -> None:
    """A rate that overshoots makes the last weights worse than earlier ones; the delivered file holds the earlier."""
    from backend.trainers import examples, loading, scoring

    config = train_config(tmp_path / "run", learning_rate=0.08, num_epochs=4, warmup_ratio=0.0)
    events = run_here(config)
    complete = events.of("complete")[0]
    scores = {item["step"]: item["eval_loss"] for item in events.of("eval") if item["step"] > 0}
    assert complete["eval_loss_tuned"] == min(scores.values()) == scores[complete["kept_step"]]

    target = loading.choose_target("cpu", 1)
    tokenizer = loading.load_tokenizer(base_model)
    model = loading.load_adapter(loading.load_base(base_model, target), tmp_path / "run" / "adapter")
    rows = examples.encode_set(tokenizer, Path(config["eval_file"]), 128).examples
    loss = scoring.mean_loss(model, rows, target=target, pad_token_id=tokenizer.pad_token_id, batch_size=4)
    assert loss == pytest.approx(complete["eval_loss_tuned"], rel=0.02)


def test_training_works_without_an_evaluation_file(tmp_path: Path, train_config: ConfigMaker) -> None:
    events = run_here(train_config(tmp_path / "run", {"eval_file": None}, num_epochs=1))
    complete = events.of("complete")[0]
    assert (complete["eval_loss_base"], complete["eval_loss_tuned"], complete["eval_examples"]) == (None, None, 0)
    assert not events.of("eval")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_divergence_is_reported(tmp_path: Path, train_config: ConfigMaker) -> None:
    with pytest.raises(TrainerError) as caught:
        run_here(train_config(tmp_path / "run", learning_rate=1e30, warmup_ratio=0.0))
    assert caught.value.code == "TRAINING_DIVERGED"
    assert "learning_rate" in str(caught.value)
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_dataset_that_does_not_fit_is_reported(tmp_path: Path, train_config: ConfigMaker) -> None:
    with pytest.raises(TrainerError) as caught:
        run_here(train_config(tmp_path / "run", max_seq_length=5))
    assert caught.value.code == "DATASET_TOO_LONG"


def test_memory_errors_advise() -> None:
    import torch

    failures: list[BaseException] = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")]
    try:
        torch.empty(2**60)
    except RuntimeError as error:
        failures.append(error)
    assert len(failures) == 3, "the CPU allocator must refuse an exabyte"
    for failure in failures:
        mapped = from_exception(failure)
        assert mapped.code == "OUT_OF_MEMORY", failure
        assert "per_device_batch_size" in str(mapped)
        assert "qlora" in str(mapped)
    other = from_exception(ValueError("shapes differ\nlong trace"))
    assert other.code == "TRAINING_FAILED"
    assert "shapes differ" in str(other)
    assert "trace" not in str(other)[:40]


def test_a_cancel_is_no_exception_that_libraries_swallow() -> None:
    assert not issubclass(Cancelled, Exception)


@pytest.mark.parametrize(
    ("keep", "base", "losses", "kept_step"),
    [
        ("best", 3.0, [2.4, 2.5, 2.9, 3.3], 1),
        ("last", 3.0, [2.4, 2.5, 2.9, 3.3], 3),
        ("last", 3.0, [2.4, 2.5, 2.6], 3),
        ("last", 3.0, [3.5, 3.2, 3.4], 2),
        ("last", None, [2.4, 2.5], 1),
    ],
)
def test_which_weights_are_kept(
    keep: Literal["best", "last"], base: float | None, losses: list[float], kept_step: int
) -> None:
    """Steps count from 1. Those that learned most are wanted by `last`, but none that is worse than the base model."""
    from backend.trainers.trainer import prefers

    kept, step = None, 0
    for number, loss in enumerate(losses, 1):
        if prefers(keep, loss, kept, base):
            kept, step = loss, number
    assert step == kept_step
