"""The memory forecast against the trainer that it is about: its constants, what autograd really keeps, and the cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backend.providers.model_facts import ModelFacts, describe
from backend.training import forecasting
from backend.training.forecasting import DataSize, Machine, Work
from tests.trainers.tiny import ConfigMaker, run_here, write_lines

ANSWER = " ".join(["The lid of the kettle is red."] * 6)


def facts_of(folder: Path) -> ModelFacts:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return describe("example/tiny", "folder", config, filenames=[path.name for path in folder.iterdir()])


def test_what_the_forecast_believes_of_the_trainer_is_so() -> None:
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    from backend.trainers import arguments, batches, sharding

    assert forecasting.BUSY_TOKENS == batches.BUSY_TOKENS
    assert forecasting.RECOMPUTED_FROM_PARAMETERS == arguments.RECOMPUTED_PARAMETERS
    assert forecasting._SPLIT_ABOVE == sharding._SHARE_OF_A_CARD
    assert forecasting._TILE_TOKENS == chunked_logprob.TOKEN_CHUNK_SIZE
    assert forecasting._TILE_WORDS == utils._CHUNKED_LOGPROB_CHUNK_SIZE


def kept_by_autograd(config: dict[str, Any]) -> tuple[int, int]:
    """Bytes that a part's first forward pass leaves for the backward pass, without the weights; and its tokens."""
    import torch

    from backend.trainers import building
    from backend.trainers.config import TrainConfig, parse_config
    from backend.trainers.events import Events
    from backend.trainers.memory import Parts
    from backend.trainers.process import Cancellation
    from tests.trainers.tiny import Recorder

    parsed = parse_config(TrainConfig, config)
    events = Events(Recorder())  # type: ignore[arg-type]
    trainer = building.prepare(parsed, events, Parts()).trainer(parsed, events, Cancellation(), Parts())
    batch = next(iter(trainer.get_train_dataloader()))  # type: ignore[attr-defined]
    found: dict[int, tuple[int, Any]] = {}
    tokens = 0
    loss = type(trainer).compute_loss  # type: ignore[attr-defined]

    def compute(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        nonlocal tokens
        tokens = inputs["input_ids"].numel()
        weights = {item.untyped_storage().data_ptr() for item in trainer.model.parameters()}

        def pack(value: torch.Tensor) -> torch.Tensor:
            buffer = value.untyped_storage()
            if buffer.data_ptr() not in weights:
                # Held on to, so that no later tensor takes the same place.
                found.setdefault(buffer.data_ptr(), (buffer.nbytes(), value))
            return value

        # The library casts from where it begins to train on.
        with trainer.target.autocast(), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            return loss(trainer, model, inputs, *rest, **named)

    trainer.compute_loss = compute  # type: ignore[attr-defined]
    trainer.current_gradient_accumulation_steps = 1  # type: ignore[attr-defined]
    trainer.training_step(trainer.model, trainer._prepare_inputs(batch))  # type: ignore[attr-defined]
    return sum(size for size, _ in found.values()), tokens


@pytest.mark.parametrize("wide", [2, 4])
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", {"lora_dropout": 0.1}),
        ("lora", {"lora_dropout": 0.0}),
        ("lora", {"lora_dropout": 0.1, "use_dora": True}),
        ("full", {"learning_rate": 1e-5}),
        ("dpo", {}),
    ],
)
def test_activations_are_what_autograd_keeps(
    tmp_path: Path,
    base_model: Path,
    train_config: ConfigMaker,
    monkeypatch: pytest.MonkeyPatch,
    method: Any,
    changes: dict[str, Any],
    wide: int,
) -> None:
    from backend.trainers import loading

    monkeypatch.setattr(loading, "cpu_has_bf16", lambda: wide == 2)
    turns = [{"role": "user", "content": ANSWER}, {"role": "assistant", "content": ANSWER}]
    row: dict[str, Any] = {"messages": turns}
    if method == "dpo":
        row = {"prompt": ANSWER, "chosen": ANSWER, "rejected": ANSWER + " No."}
    rows = write_lines(tmp_path / "rows.jsonl", [row] * 4)
    sizes = {"per_device_batch_size": 4, "gradient_accumulation_steps": 1, "max_seq_length": 512, "lora_r": 4}
    fields = {"method": method, "train_file": str(rows), "eval_file": None}
    kept, tokens = kept_by_autograd(train_config(tmp_path / "run", fields, **sizes, **changes))
    # Of the labelled half of the tokens the logits are kept once, in 32 bits; the tiles of dpo leave nothing.
    share = 0.5 if method != "dpo" else 0.0
    work = Work.of(method, {**sizes, "lora_dropout": 0.0, **changes}, DataSize(tokens, tokens, share))
    machine = Machine("cpu", 10**10, has_16_bit=wide == 2)
    found = forecasting._sizes(facts_of(base_model), work.lora_r)
    assert found is not None
    expected = forecasting._activations(found, work, machine, tokens) + forecasting._casts(found, work, wide)
    expected += round(4 * found.vocabulary * share * tokens)
    assert kept == pytest.approx(expected, rel=0.15)


def test_a_cut_run_computes_the_same(tmp_path: Path, train_config: ConfigMaker) -> None:
    """In whatever pieces, with activations computed anew: each step has the same loss, and the run the same name."""
    settings = {"num_epochs": 1, "lora_dropout": 0.0, "per_device_batch_size": 4, "gradient_accumulation_steps": 2}
    asked = run_here(train_config(tmp_path / "asked", **settings))
    fit = {"per_device_batch_size": 2, "recompute": True, "most_tokens": 64}
    cut = run_here(train_config(tmp_path / "cut", {"fit": fit}, **settings))
    curves = [[item["train_loss"] for item in run.of("log")] for run in (asked, cut)]
    assert curves[0] == pytest.approx(curves[1], rel=0.02)
    assert cut.of("complete")[0]["most_tokens_at_once"] <= 64 < asked.of("complete")[0]["most_tokens_at_once"]
    named = [json.loads((tmp_path / name / "training_config.json").read_text()) for name in ("asked", "cut")]
    assert named[0]["fingerprint"] == named[1]["fingerprint"]


def test_a_cut_that_changes_the_step_is_refused(tmp_path: Path, train_config: ConfigMaker) -> None:
    from backend.trainers.errors import TrainerError

    with pytest.raises(TrainerError, match="does not divide"):
        run_here(train_config(tmp_path / "run", {"fit": {"per_device_batch_size": 3}}))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_gpu_takes_what_was_forecast(
    tmp_path: Path, base_model: Path, train_config: ConfigMaker, method: Any
) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    sizes = {"per_device_batch_size": 4, "gradient_accumulation_steps": 2, "max_seq_length": 256, "lora_r": 8}
    fields = {"device": "cuda", "method": method}
    torch.cuda.reset_peak_memory_stats()
    complete = run_here(train_config(tmp_path / "run", fields, **sizes, learning_rate=1e-5)).of("complete")[0]
    data = DataSize(complete["most_tokens_at_once"], complete["most_tokens_at_once"])
    expected = forecasting.forecast(
        facts_of(base_model), Work.of(method, {**sizes, "lora_dropout": 0.1}, data), Machine("cuda", 8 * 10**9)
    )
    assert expected is not None
    # The tiny model's tensors are small beside what libraries keep for themselves.
    assert abs(expected.comparable("cuda") - complete["peak_memory_bytes"]) < 200_000_000
