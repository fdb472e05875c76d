"""Runs of two processes on this CPU (gloo): the same losses and weights as one, cancel, kill -9 of one, resume."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.tiny import Child, ConfigMaker, Recorder, run_here

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="who is whose child is read from /proc"),
]

SETTINGS: dict[str, Any] = {"lora_dropout": 0.0, "keep": "last", "early_stopping_patience": 0}
FULL: dict[str, Any] = {**SETTINGS, "learning_rate": 1e-3}


def test_a_killed_process_ends_the_other_and_one_alone_goes_on(
    tmp_path: Path, train_config: ConfigMaker, start_child: Callable[..., Child]
) -> None:
    """Each with all of the model (DDP). One process resumes what two began: the steps are the same."""
    run_dir = tmp_path / "run"
    child = start_child("qlora", train_config(run_dir, {"processes": 2}, save_steps=4, **SETTINGS))
    child.read_until("checkpoint", 2)
    pids = processes_of(child)
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    assert child.finish() == 128 + signal.SIGKILL
    assert time.monotonic() - killed < 10
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not child.of("error"), "the worker takes it for what it is, a kill, and tries again"
    assert not (run_dir / "adapter").exists()

    resumed = run_here(train_config(run_dir, save_steps=4, **SETTINGS))
    straight = run_here(train_config(tmp_path / "straight", **SETTINGS))
    assert resumed.of("resumed")[0]["step"] >= 8
    assert_same(curve(child) | curve(resumed), straight)
    assert resumed.of("complete")[0]["num_tokens"] == straight.of("complete")[0]["num_tokens"]
    assert_close(run_dir / "adapter" / "adapter_model.safetensors", tmp_path / "straight")


def test_a_split_model_is_trained_cancelled_and_resumed_as_a_whole_one(
    tmp_path: Path, train_config: ConfigMaker, start_child: Callable[..., Child]
) -> None:
    """Each with a part of each layer (FSDP). The signal goes to one process, and both stop at the same step."""
    from backend.trainers.checkpoints import is_whole

    run_dir = tmp_path / "run"
    fields = {"method": "full", "processes": 2, "sharding": "shard"}
    child = start_child("qlora", train_config(run_dir, fields, **FULL))
    child.read_until("log", 5)
    os.kill(processes_of(child)[1], signal.SIGTERM)
    assert child.finish() == 128 + signal.SIGTERM
    step = child.of("cancelled")[0]["step"]
    checkpoint = run_dir / f"checkpoint-{step}"
    assert child.of("checkpoint")[-1]["path"] == checkpoint.name
    assert is_whole(checkpoint)
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}

    shutil.copytree(run_dir, tmp_path / "alone")
    resumed = start_child("qlora", train_config(run_dir, fields, **FULL))
    assert resumed.finish(280) == 0, resumed.stderr()[-2000:]
    straight = run_here(train_config(tmp_path / "straight", {"method": "full"}, **FULL))
    assert resumed.of("resumed") == [{"event": "resumed", "step": step}]
    assert_same(curve(child) | curve(resumed), straight)
    complete, expected = resumed.of("complete")[0], straight.of("complete")[0]
    assert (complete["processes"], complete["sharded"]) == (2, True)
    assert complete["trainable_parameters"] == expected["trainable_parameters"]
    assert complete["eval_loss_tuned"] == pytest.approx(expected["eval_loss_tuned"], rel=0.01)
    assert_close(run_dir / "adapter" / "model.safetensors", tmp_path / "straight")
    config = (run_dir / "adapter" / "config.json").read_text()
    assert config == (tmp_path / "straight" / "adapter" / "config.json").read_text()

    alone = run_here(train_config(tmp_path / "alone", {"method": "full"}, **FULL))
    assert alone.of("resumed")[0]["step"] == step
    assert_same(curve(child) | curve(alone), straight)


def processes_of(child: Child) -> list[int]:
    """The trainer's own children, in the order in which it started them."""
    pid = child.process.pid
    return sorted(int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def curve(run: Child | Recorder) -> dict[int, float]:
    return {item["step"]: item["train_loss"] for item in run.of("log")}


def assert_same(ours: dict[int, float], straight: Recorder) -> None:
    theirs = curve(straight)
    assert ours.keys() == theirs.keys(), "each step once, none left out"
    # Products are rounded to 16 bits where the CPU multiplies them, and two processes sum in another order.
    assert [ours[step] for step in theirs] == pytest.approx(list(theirs.values()), rel=0.02)


def assert_close(delivered: Path, straight: Path) -> None:
    import torch
    from safetensors.torch import load_file

    ours, theirs = load_file(delivered), load_file(straight / "adapter" / delivered.name)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype
        difference = (ours[name].float() - expected.float()).norm() / expected.float().norm()
        assert difference < 0.05, name
    assert all(torch.isfinite(item).all() for item in ours.values())
