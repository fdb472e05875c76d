"""Methods besides plain LoRA: DoRA, rank-stabilised LoRA, all weights, and preferences by DPO."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.trainers.errors import TrainerError
from tests.trainers.tiny import COLOURS, PARTS, Child, ConfigMaker, run_here, write_lines


def preference_rows(question: str = "Which colour has the {part}?") -> list[dict[str, Any]]:
    """Of two colours the kettle's own is preferred. Texts and lists of messages may stand beside one another."""
    rows: list[dict[str, Any]] = []
    for number, part in enumerate(PARTS):
        asked: Any = question.format(part=part)
        good, bad = (f"The {part} of the kettle is {COLOURS[(number + shift) % 8]}." for shift in (0, 3))
        if number % 2:
            rows.append({"prompt": asked, "chosen": good, "rejected": bad})
        else:
            rows.append(
                {
                    "prompt": [{"role": "user", "content": asked}],
                    "chosen": [{"role": "assistant", "content": good}],
                    "rejected": [{"role": "assistant", "content": bad}],
                }
            )
    return rows


@pytest.fixture(scope="module")
def preference_fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("preferences")
    return {
        "method": "dpo",
        "train_file": str(write_lines(folder / "train.jsonl", preference_rows())),
        "eval_file": str(write_lines(folder / "eval.jsonl", preference_rows("What colour is the {part}?"))),
    }


@pytest.mark.parametrize("switch", ["use_dora", "use_rslora"])
def test_switches_of_the_adapter_reach_it(tmp_path: Path, train_config: ConfigMaker, switch: str) -> None:
    events = run_here(train_config(tmp_path / "run", num_epochs=3, **{switch: True}))
    complete = events.of("complete")[0]
    assert complete["eval_loss_tuned"] < complete["eval_loss_base"]
    saved = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert saved[switch] is True


def test_all_weights_are_trained_and_delivered_as_a_whole_model(
    tmp_path: Path, train_config: ConfigMaker, data: dict[str, Path]
) -> None:
    import torch

    from backend.trainers import examples, loading, scoring

    run_dir = tmp_path / "run"
    events = run_here(train_config(run_dir, {"method": "full"}, learning_rate=2e-3, num_epochs=6))
    complete = events.of("complete")[0]
    assert complete["eval_loss_tuned"] < 0.5 * complete["eval_loss_base"]
    assert any("learning_rate" in item["message"] for item in events.of("warning")), "the rate is high for this method"
    names = {path.name for path in (run_dir / "adapter").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.startswith("adapter") or name.endswith(".bin")]
    # Loaded as any model is, in the 16 bits it was saved in, it scores what the run said.
    target = loading.Target("cpu", torch.bfloat16, torch.bfloat16)
    tokenizer = loading.load_tokenizer(run_dir / "adapter")
    model = loading.load_base(run_dir / "adapter", target)
    assert model.config._attn_implementation == "sdpa"
    rows = examples.encode_set(tokenizer, data["eval"], 128).examples
    loss = scoring.mean_loss(model, rows, target=target, pad_token_id=tokenizer.pad_token_id, batch_size=4)
    assert loss == pytest.approx(complete["eval_loss_tuned"], rel=0.05)


def test_a_run_over_all_weights_resumes(
    tmp_path: Path, train_config: ConfigMaker, start_child: Callable[..., Child]
) -> None:
    from safetensors.torch import load_file

    settings: dict[str, Any] = {"learning_rate": 2e-3, "save_steps": 3, "num_epochs": 3}
    config = train_config(tmp_path / "run", {"method": "full"}, **settings)
    child = start_child("qlora", config)
    child.read_until("checkpoint", 1)
    child.process.send_signal(signal.SIGKILL)
    assert child.finish() == -signal.SIGKILL
    assert run_here(config).of("log")[0]["step"] > 1
    run_here(train_config(tmp_path / "other", {"method": "full"}, **settings))
    ours, theirs = (load_file(tmp_path / name / "adapter" / "model.safetensors") for name in ("run", "other"))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_all_weights_of_a_large_model_are_refused(
    tmp_path: Path, train_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backend.trainers import arguments

    monkeypatch.setattr(arguments, "FULL_PARAMETERS", 100_000)
    with pytest.raises(TrainerError, match="qlora") as caught:
        run_here(train_config(tmp_path / "run", {"method": "full"}))
    assert caught.value.code == "INVALID_CONFIG"


def test_preferences_are_learned(
    tmp_path: Path, train_config: ConfigMaker, preference_fields: dict[str, Any], base_model: Path
) -> None:
    import torch

    from backend.trainers import examples, loading, scoring

    run_dir = tmp_path / "run"
    settings = {"num_epochs": 8, "learning_rate": 2e-2, "lora_dropout": 0.0, "dpo_beta": 0.5}
    events = run_here(train_config(run_dir, preference_fields, **settings))
    complete = events.of("complete")[0]
    # As long as nothing is learned, neither answer is preferred more than by the base model.
    assert complete["eval_loss_base"] == pytest.approx(0.6931, abs=1e-3)
    assert complete["eval_loss_tuned"] < 0.6
    assert complete["perplexity_tuned"] is None
    assert [item["step"] for item in events.of("eval")][:3] == [0, 2, 4]
    assert events.of("checkpoint")

    target = loading.Target("cpu", torch.float32, torch.float32)
    tokenizer = loading.load_tokenizer(base_model)
    model = loading.load_adapter(loading.load_base(base_model, target), run_dir / "adapter")

    def preferred(number: int) -> float:
        """How much likelier the adapter makes the good answer than the bad one, beyond what the base does."""
        row = preference_rows()[number]
        sums = []
        for answer in (row["chosen"], row["rejected"]):
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
            example = examples.encode(tokenizer, messages)
            pad = tokenizer.pad_token_id
            tuned = scoring.mean_loss(model, [example], target=target, pad_token_id=pad, batch_size=1)
            with model.disable_adapter():
                base = scoring.mean_loss(model, [example], target=target, pad_token_id=pad, batch_size=1)
            assert tuned is not None
            assert base is not None
            sums.append(base - tuned)
        return sums[0] - sums[1]

    assert all(preferred(number) > 0 for number in (1, 3, 5, 7))


def test_a_run_on_preferences_resumes_and_ends_on_a_cancel(
    tmp_path: Path, train_config: ConfigMaker, preference_fields: dict[str, Any], start_child: Callable[..., Child]
) -> None:
    from safetensors.torch import load_file

    settings: dict[str, Any] = {"save_steps": 3, "num_epochs": 4}
    config = train_config(tmp_path / "run", preference_fields, **settings)
    child = start_child("qlora", config)
    child.read_until("log", 4)
    child.process.send_signal(signal.SIGTERM)
    assert child.finish() == 128 + signal.SIGTERM
    assert child.of("cancelled")
    assert run_here(config).of("log")[0]["step"] > 4
    run_here(train_config(tmp_path / "other", preference_fields, **settings))
    ours, theirs = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("run", "other"))
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "q", "chosen": "a"},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": " ", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ],
)
def test_lines_that_are_no_preferences_are_named(tmp_path: Path, line: dict[str, Any]) -> None:
    from backend.trainers.preferences import read_preferences

    path = write_lines(tmp_path / "d.jsonl", [preference_rows()[0], line])
    with pytest.raises(TrainerError, match=r"Line 2 of d\.jsonl") as caught:
        read_preferences(path)
    assert caught.value.code == "DATASET_UNUSABLE"


def test_prompts_of_long_pairs_are_cut_and_both_answers_stay_whole(base_model: Path, tmp_path: Path) -> None:
    from backend.trainers import examples, loading
    from backend.trainers.preferences import encode_pairs

    tokenizer = loading.load_tokenizer(base_model)
    long = {"prompt": "Well, " + "the kettle. " * 60, "chosen": "It is red.", "rejected": "It is blue and " * 4}
    path = write_lines(tmp_path / "d.jsonl", [long, {**long, "rejected": "no " * 200}])
    encoded = encode_pairs(tokenizer, path, 96)
    assert (len(encoded.examples), encoded.skipped, encoded.truncated) == (1, 1, 1)
    pair = encoded.examples[0]
    assert pair["chosen"][0]["content"] == long["chosen"]
    assert pair["rejected"][0]["content"] == long["rejected"]
    for answer in (pair["chosen"], pair["rejected"]):
        assert len(examples.encode(tokenizer, pair["prompt"] + answer).input_ids) <= 96
