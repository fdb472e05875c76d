"""The contract's hyperparameters."""

from typing import Any

import pytest

from backend.training.errors import BadHyperparameter
from backend.training.hyperparams import NAMES, carried, complete

CONTRACT = {
    "num_epochs": 3,
    "learning_rate": 2e-4,
    "per_device_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "max_seq_length": 2048,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "warmup_ratio": 0.03,
    "weight_decay": 0.01,
}
OURS = {
    "seed": 42,
    "keep": "best",
    "early_stopping_patience": 3,
    "long_examples": "truncate",
    "use_dora": False,
    "use_rslora": False,
    "use_liger": False,
    "torch_compile": False,
    "dpo_beta": 0.1,
}


def test_the_contracts_values_are_the_defaults() -> None:
    assert complete({}) == {**CONTRACT, **OURS}
    assert complete(CONTRACT) == complete({})


def test_each_method_has_its_own_rate_unless_one_is_given() -> None:
    rates = {method: complete({}, method=method)["learning_rate"] for method in ("lora", "qlora", "full", "dpo")}
    assert rates == {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5, "dpo": 2e-5}
    assert complete({"learning_rate": 1e-5}, method="dpo")["learning_rate"] == 1e-5
    # A later run by another method takes that one's default, and keeps what somebody chose.
    assert "learning_rate" not in carried(complete({}), "qlora", "dpo")
    assert carried(complete({"learning_rate": 1e-5}), "qlora", "dpo")["learning_rate"] == 1e-5
    assert carried(complete({}), "qlora", "lora")["num_epochs"] == 3


@pytest.mark.parametrize("name", ["use_dora", "use_rslora"])
def test_what_is_for_adapters_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(BadHyperparameter, match=f"{name} is for adapters"):
        complete({name: True}, method="full")
    assert complete({name: False}, method="full")[name] is False
    assert complete({name: True}, method="dpo")[name] is True


def test_the_projects_sequence_length_is_a_default_too() -> None:
    assert complete({}, max_seq_length=512)["max_seq_length"] == 512
    assert complete({"max_seq_length": 128}, max_seq_length=512)["max_seq_length"] == 128


def test_a_whole_number_may_come_as_a_float() -> None:
    assert complete({"num_epochs": 2.0})["num_epochs"] == 2


@pytest.mark.parametrize("name", ["epochs", "n_epochs", "learning_rate_multiplier", "Num_Epochs", ""])
def test_an_unknown_name_is_refused_with_the_accepted_ones(name: str) -> None:
    with pytest.raises(BadHyperparameter) as caught:
        complete({name: 1})
    assert caught.value.status == 400
    assert all(known in caught.value.detail for known in NAMES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_r", 0),
        ("learning_rate", -1e-4),
        ("learning_rate", 0),
        ("num_epochs", 10_000),
        ("num_epochs", 1.5),
        ("num_epochs", True),
        ("num_epochs", "3"),
        ("num_epochs", None),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("lora_dropout", 1.0),
        ("max_seq_length", 1),
        ("seed", -1),
        ("warmup_ratio", [0.1]),
        ("per_device_batch_size", 10**30),
        ("early_stopping_patience", -1),
        ("long_examples", "drop"),
        ("long_examples", ["truncate"]),
        ("keep", None),
        ("use_dora", "yes"),
        ("torch_compile", 1),
        ("dpo_beta", 0),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadHyperparameter, match=name):
        complete({name: value})


def test_early_stopping_is_off_by_null_and_for_who_wants_the_last_weights() -> None:
    assert complete({"early_stopping_patience": None})["early_stopping_patience"] == 0
    assert complete({"keep": "last"})["early_stopping_patience"] == 0
    assert complete({"keep": "last", "early_stopping_patience": 2})["early_stopping_patience"] == 2


def test_the_trainer_knows_every_name() -> None:
    """What the service accepts must be what the child's strict config loader accepts."""
    from backend.trainers.config import Hyperparams, parse_config

    assert parse_config(Hyperparams, complete({}), "") == Hyperparams()
