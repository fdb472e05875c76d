"""What only a CUDA GPU can show: `pytest -m gpu`. Each test is skipped, with its reason, where what it needs is not."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.test_methods import preference_rows
from tests.trainers.test_serve import QUESTIONS, Serving
from tests.trainers.tiny import TRAIN_ROWS, Child, ConfigMaker, run, run_here, write_lines

pytestmark = pytest.mark.gpu
METHODS = ["lora", "qlora", "full", "dpo"]
Train = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def gpus() -> int:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    return int(torch.cuda.device_count())


@pytest.fixture
def train(tmp_path: Path, train_config: ConfigMaker, start_child: Callable[..., Child]) -> Train:
    """Trains as a worker does, on one GPU unless `processes` says more; the `complete` event."""

    def start(method: str = "lora", *, name: str = "run", processes: int = 1, **hyperparams: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {"method": method, "device": "cuda", "processes": processes}
        if method == "dpo":
            fields["train_file"] = str(write_lines(tmp_path / "train.jsonl", preference_rows()))
            eval_rows = preference_rows("What colour is the {part}?")
            fields["eval_file"] = str(write_lines(tmp_path / "eval.jsonl", eval_rows))
        if method == "full":
            hyperparams.setdefault("learning_rate", 1e-3)
        child = start_child("qlora", train_config(tmp_path / name, fields, **hyperparams))
        assert child.finish(280) == 0, (child.of("error"), child.stderr()[-2000:])
        return child.of("complete")[0]

    return start


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_in_16_bits(train: Train, method: str) -> None:
    import torch

    complete = train(method)
    assert complete["eval_loss_tuned"] < complete["eval_loss_base"]
    assert complete["device"] == "cuda"
    assert complete["compute_dtype"] == ("bfloat16" if torch.cuda.is_bf16_supported() else "float16")
    assert complete["optimizer"] == ("paged_adamw_8bit" if method == "qlora" else "adamw_torch_fused")


def test_attention_is_the_fastest_that_is_installed(train: Train) -> None:
    from transformers.utils import is_flash_attn_2_available

    complete = train(num_epochs=1)
    assert complete["attention"] == ("flash_attention_2" if is_flash_attn_2_available() else "sdpa")
    assert complete["packed"] is True


def test_a_gpu_computes_what_the_cpu_does(train: Train, tmp_path: Path, train_config: ConfigMaker) -> None:
    settings: dict[str, Any] = {"num_epochs": 2, "lora_dropout": 0.0, "keep": "last"}
    complete = train(**settings)
    expected = run_here(train_config(tmp_path / "cpu", **settings)).of("complete")[0]
    for figure in ("steps", "num_tokens", "trainable_parameters"):
        assert complete[figure] == expected[figure]
    for figure in ("eval_loss_base", "eval_loss_tuned", "final_train_loss"):
        assert complete[figure] == pytest.approx(expected[figure], rel=0.05)


@pytest.mark.parametrize(("switch", "package"), [("use_liger", "liger_kernel"), ("torch_compile", "triton")])
def test_faster_kernels_compute_the_same(train: Train, switch: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed here")
    settings: dict[str, Any] = {"num_epochs": 2, "lora_dropout": 0.0, "keep": "last"}
    plain, faster = train(name="plain", **settings), train(name="faster", **{switch: True}, **settings)
    assert faster["eval_loss_tuned"] == pytest.approx(plain["eval_loss_tuned"], rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_the_peak_of_memory_is_the_gpus(train: Train, method: str) -> None:
    import torch

    complete = train(method, num_epochs=1)
    # Weights of 0.1 M parameters are the least that was there, all of the card the most.
    assert 200_000 < complete["peak_memory_bytes"] <= torch.cuda.mem_get_info()[1]


def test_a_run_resumes_on_a_gpu_after_a_cancel(
    tmp_path: Path, train_config: ConfigMaker, start_child: Callable[..., Child]
) -> None:
    fields = {"method": "qlora", "device": "cuda", "processes": 1}
    child = start_child("qlora", train_config(tmp_path / "run", fields, num_epochs=200))
    child.read_until("log", 3)
    child.process.terminate()
    assert child.finish(60) == 143
    step = child.of("cancelled")[0]["step"]
    again = start_child("qlora", train_config(tmp_path / "run", fields, num_epochs=200))
    again.read_until("log")
    assert again.events[-1]["step"] == step + 1
    again.process.terminate()
    again.finish(60)


def test_what_a_gpu_trained_is_merged_and_converted(
    train: Train, tmp_path: Path, base_model: Path, train_config: ConfigMaker
) -> None:
    from backend.trainers.config import ExportConfig
    from backend.trainers.export import export

    train(num_epochs=10)
    events = run(
        export,
        ExportConfig,
        base_model=str(base_model),
        adapter=str(tmp_path / "run" / "adapter"),
        output_dir=str(tmp_path / "out"),
        formats=["merged", "gguf-q8_0"],
        prompts_file=str(write_lines(tmp_path / "prompts.jsonl", TRAIN_ROWS)),
        name="kettle",
    )
    assert events.of("complete")[0]["drift"]["agreement"] > 0.9


@pytest.fixture
def serving(tmp_path: Path, base_model: Path) -> Iterator[Serving]:
    child = Serving(tmp_path, base_model, device="cuda")
    yield child
    child.close()


def test_a_gpu_serves_the_base_and_an_adapter_at_once(train: Train, serving: Serving, tmp_path: Path) -> None:
    train(num_epochs=20)
    serving.ask("base", QUESTIONS[0], None)
    serving.ask("tuned", QUESTIONS[0], tmp_path / "run" / "adapter")
    assert not serving.of("failed"), serving.of("failed")
    assert serving.text("tuned") != serving.text("base")


@pytest.mark.parametrize(("method", "sharded"), [("lora", False), ("qlora", False), ("full", True)])
def test_several_gpus_compute_what_one_does(
    train: Train, gpus: int, tmp_path: Path, method: str, sharded: bool
) -> None:
    if gpus < 2:
        pytest.skip("there are not two GPUs here")
    settings: dict[str, Any] = {"lora_dropout": 0.0, "keep": "last", "early_stopping_patience": 0}
    one, two = train(method, name="one", **settings), train(method, name="two", processes=2, **settings)
    assert (two["processes"], two["sharded"]) == (2, sharded)
    assert two["eval_loss_tuned"] == pytest.approx(one["eval_loss_tuned"], rel=0.05)
    assert two["num_tokens"] == one["num_tokens"]
    curves = [
        [
            entry["loss"]
            for entry in json.loads((tmp_path / name / "metrics.json").read_text())["history"]
            if "loss" in entry
        ]
        for name in ("one", "two")
    ]
    assert curves[1] == pytest.approx(curves[0], rel=0.05)
