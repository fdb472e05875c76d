"""Out of memory: half as much at once from the last whole checkpoint on, twice at most, then a clear end."""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from backend.trainers.errors import TrainerError
from tests.trainers.tiny import Child, ConfigMaker, Recorder, run_here, write_lines

LONG = {
    "num_epochs": 2,
    "per_device_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "max_seq_length": 512,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 examples of nearly 500 tokens: one step of 32,000 tokens."""
    answer = "The lid of the kettle is red. " * 48
    rows = [
        {"messages": [{"role": "user", "content": f"Say it, {n}."}, {"role": "assistant", "content": answer}]}
        for n in range(64)
    ]
    return write_lines(tmp_path_factory.mktemp("long") / "train.jsonl", rows)


def address_space(child: Child, name: Literal["VmSize", "VmPeak"]) -> int:
    """Bytes that a process has reserved, now or at most."""
    status = Path(f"/proc/{child.process.pid}/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found is not None
    return int(found.group(1)) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a running process is Linux's")
def test_a_run_short_of_memory_goes_on_in_smaller_parts(
    tmp_path: Path,
    train_config: ConfigMaker,
    start_child: Callable[..., Child],
    long_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real limit on the address space, with room for three quarters of what the same run took without one."""
    # The C library would keep what was freed for itself, which counts as reserved.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    fields = {"train_file": str(long_file), "eval_file": None}
    free = start_child("qlora", train_config(tmp_path / "free", fields, **LONG))
    free.read_until("stage", 2)
    loaded = address_space(free, "VmSize")
    free.read_until("stage", 3)
    needed = address_space(free, "VmPeak") - loaded
    assert free.finish() == 0

    child = start_child("qlora", train_config(tmp_path / "run", fields, **LONG))
    child.read_until("stage", 2)
    assert child.events[-1]["name"] == "training"
    limit = address_space(child, "VmSize") + int(0.75 * needed)
    resource.prlimit(child.process.pid, resource.RLIMIT_AS, (limit, limit))
    assert child.finish(240) == 0, (child.of("warning"), child.of("error"))
    warnings = [item["message"] for item in child.of("warning")]
    assert any("per_device_batch_size 32 and gradient_accumulation_steps 2" in message for message in warnings), (
        warnings
    )
    complete, unlimited = child.of("complete")[0], free.of("complete")[0]
    assert 1 <= complete["memory_halvings"] <= 2
    assert complete["steps"] == unlimited["steps"] == 2
    assert complete["most_tokens_at_once"] <= unlimited["most_tokens_at_once"] / 2
    assert complete["final_train_loss"] == pytest.approx(unlimited["final_train_loss"], rel=0.05)
    assert unlimited["peak_memory_bytes"] > complete["peak_memory_bytes"] > 100_000_000
    assert not (tmp_path / "run" / "memory.json").exists()


def failing(monkeypatch: pytest.MonkeyPatch, most_tokens: int, error: BaseException) -> None:
    """Let each part of more than `most_tokens` tokens fail as the allocator does."""
    from backend.trainers import supervised

    loss = supervised.SupervisedTrainer.compute_loss

    def compute(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if inputs["input_ids"].numel() > most_tokens:
            raise error
        return loss(self, model, inputs, *rest, **named)

    monkeypatch.setattr(supervised.SupervisedTrainer, "compute_loss", compute)


def test_it_resumes_and_computes_the_same_steps(
    tmp_path: Path, train_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out at step 5, after a checkpoint at step 4: the curve goes on where it was."""
    import torch

    from backend.trainers import supervised

    settings: dict[str, Any] = {"num_epochs": 3, "save_steps": 2, "lora_dropout": 0.0}
    straight = run_here(train_config(tmp_path / "straight", **settings)).of("log")
    loss = supervised.SupervisedTrainer.compute_loss
    largest: list[int] = []

    def compute(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        largest.append(inputs["input_ids"].numel())
        if self.state.global_step == 4 and largest[-1] > 80:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return loss(self, model, inputs, *rest, **named)

    monkeypatch.setattr(supervised.SupervisedTrainer, "compute_loss", compute)
    events = run_here(train_config(tmp_path / "run", **settings, max_seq_length=60))
    warning = next(item["message"] for item in events.of("warning") if "Out of memory" in item["message"])
    assert "from step 4" in warning
    steps = [item["step"] for item in events.of("log")]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    curve = [item["train_loss"] for item in events.of("log")]
    assert curve == pytest.approx([item["train_loss"] for item in straight], rel=0.02)
    assert events.of("complete")[0]["memory_halvings"] == 1


def test_it_gives_up_after_two_tries_and_says_what_would_fit(
    tmp_path: Path, train_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 0, MemoryError())
    recorder = Recorder()
    from backend.trainers.config import TrainConfig, parse_config
    from backend.trainers.events import Events
    from backend.trainers.process import Cancellation
    from backend.trainers.qlora import fine_tune

    config = parse_config(TrainConfig, train_config(tmp_path / "run"))
    with pytest.raises(TrainerError) as caught:
        fine_tune(config, Events(recorder), Cancellation())  # type: ignore[arg-type]
    assert caught.value.code == "OUT_OF_MEMORY"
    assert "max_seq_length" in str(caught.value)
    assert len([item for item in recorder.of("warning") if "Out of memory" in item["message"]]) == 2
    kept = json.loads((tmp_path / "run" / "memory.json").read_text())
    assert kept["halvings"] == 2, "a later attempt begins with what fitted least badly"


def test_a_step_of_preferences_keeps_its_pairs_when_halved() -> None:
    from backend.trainers.memory import Parts

    for halvings, size, accumulation in ((0, 4, 2), (1, 2, 4), (2, 1, 8), (3, 1, 8)):
        parts = Parts(halvings)
        assert (parts.batch_size(4, 2), parts.accumulation(4, 2)) == (size, accumulation)
    for asked, accumulation in ((5, 1), (3, 2), (7, 3), (6, 1)):
        for halvings in (1, 2):
            parts = Parts(halvings)
            size = parts.batch_size(asked, accumulation)
            assert size <= max(1, asked >> halvings)
            assert size * parts.accumulation(asked, accumulation) == asked * accumulation


@pytest.mark.gpu
def test_a_gpu_reports_its_peak(tmp_path: Path, train_config: ConfigMaker) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    complete = run_here(train_config(tmp_path / "run", {"device": "cuda", "method": "qlora"})).of("complete")[0]
    assert 0 < complete["peak_memory_bytes"] <= torch.cuda.mem_get_info()[1]
    assert complete["eval_loss_tuned"] < complete["eval_loss_base"]
