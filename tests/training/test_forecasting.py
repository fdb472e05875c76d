"""Forecasts of memory, how a run is cut to fit, and what is said to fit where it does not."""

from dataclasses import replace
from typing import Any

import pytest

from backend.providers.model_facts import ModelFacts, describe
from backend.training import fitting
from backend.training.forecasting import DataSize, Machine, Work, forecast, tokens_at_once
from backend.training.sizing import Method

FILES = ("config.json", "model.safetensors", "tokenizer.json")
SMALL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LARGE = {
    **SMALL,
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
SHORT = DataSize(longest=120, mean=90.0)


def facts_of(config: dict[str, Any]) -> ModelFacts:
    return describe("acme/base", "hub", config, filenames=FILES, license_name="mit")


def cpu(gigabytes: float, **more: bool) -> Machine:
    return Machine("cpu", round(gigabytes * 1e9), **more)


def gpu(gigabytes: float, gpus: int = 1) -> Machine:
    return Machine("cuda", round(gigabytes * 1e9), gpus=gpus)


def work(method: Method = "lora", **changes: Any) -> Work:
    sizes = {"per_device_batch_size": 4, "gradient_accumulation_steps": 4, "max_seq_length": 2048, "lora_r": 16}
    return Work(method=method, **{**sizes, **changes})


def total(config: dict[str, Any], wanted: Work, machine: Machine) -> int:
    found = forecast(facts_of(config), wanted, machine)
    assert found is not None
    assert found.total == sum(found.parts.values())
    return found.total


# Tokens of a pass


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 4 * 2048),
        ({"data": DataSize(2048, 2048)}, 4 * 2048),
        ({"data": DataSize(100, 100)}, 1024),
        ({"data": DataSize(100, 20)}, 100 + 15 * 20),
        ({"per_device_batch_size": 1, "max_seq_length": 256}, 256),
        ({"method": "dpo", "data": SHORT}, 2 * 4 * 120),
        ({"most_tokens": 300, "data": DataSize(100, 100)}, 300),
        ({"most_tokens": 50, "data": DataSize(100, 100)}, 100),
        ({"max_seq_length": 16_384}, 4 * 8192),
    ],
)
def test_the_tokens_of_the_largest_pass(changes: dict[str, Any], wanted: int) -> None:
    assert tokens_at_once(work(**changes), "cpu", 8192) == wanted


# Parts


def test_each_method_holds_what_it_trains() -> None:
    facts, machine = facts_of(SMALL), cpu(24)
    count = facts.num_parameters
    assert count == 134_515_008
    full, lora = (forecast(facts, work(method, data=SHORT), machine) for method in ("full", "lora"))
    assert full is not None
    assert lora is not None
    assert (full.weights, full.optimizer, full.best, full.adapter) == (4 * count, 8 * count, 4 * count, 0)
    adapter = 4_884_480
    assert (lora.weights, lora.adapter, lora.optimizer) == (2 * count, 4 * adapter, 8 * adapter)
    unaided = forecast(facts, work(data=SHORT), cpu(24, has_16_bit=False))
    assert unaided is not None
    assert unaided.weights == 4 * count


@pytest.mark.parametrize("config", [SMALL, LARGE])
@pytest.mark.parametrize("machine", [cpu(24), gpu(80)])
def test_more_work_takes_more_memory(config: dict[str, Any], machine: Machine) -> None:
    base = work()
    less = total(config, base, machine)
    for more in ({"lora_r": 64}, {"per_device_batch_size": 8}, {"max_seq_length": 4096}, {"dora": True}):
        assert total(config, replace(base, **more), machine) > less, more
    assert total(config, replace(base, recompute=True), machine) <= less
    assert total(config, replace(base, method="full"), machine) > less
    assert total(config, replace(base, data=SHORT), machine) < less


def test_several_gpus_share_a_large_model() -> None:
    assert total(LARGE, work("full"), gpu(80, gpus=4)) < total(LARGE, work("full"), gpu(80)) / 2
    assert total(SMALL, work(), gpu(80, gpus=4)) == total(SMALL, work(), gpu(80))


def test_what_is_not_known_is_not_guessed() -> None:
    assert forecast(facts_of({"model_type": "novel", "hidden_size": 64}), work(), cpu(24)) is None
    assert fitting.cut_to_fit(facts_of({}), work(), cpu(24)) is None


# What a worker says of itself


@pytest.mark.parametrize(
    ("report", "wanted"),
    [
        ({"cuda_available": False, "gpus": []}, None),
        ({"memory_total_gb": 24.0, "bf16_supported": True, "bnb_available": True}, cpu(24)),
        (
            {"memory_total_gb": 24.0, "memory_usable_gb": 4.0},
            Machine("cpu", 4_000_000_000, has_16_bit=False, has_4_bit=False),
        ),
        (
            {
                "cuda_available": True,
                "bnb_available": True,
                "gpus": [{"vram_total_gb": 8.0}, {"vram_total_gb": 24.0}],
                "memory_total_gb": 64.0,
            },
            gpu(8, gpus=2),
        ),
        (
            {
                "cuda_available": True,
                "bf16_supported": True,
                "bnb_available": True,
                "gpus": [{"vram_total_gb": 24.0}],
                "memory_usable_gb": 64.0,
                "training_device": "cpu",
            },
            cpu(64),
        ),
    ],
)
def test_the_machine_of_a_report(report: dict[str, Any], wanted: Machine | None) -> None:
    assert Machine.of(report) == wanted


# Cuts


@pytest.mark.parametrize("sizes", [(4, 4), (6, 5), (3, 5), (7, 1), (512, 2)])
@pytest.mark.parametrize("gigabytes", [2.5, 3.5, 6.0, 12.0, 40.0])
def test_a_cut_keeps_the_effective_batch_and_fits(sizes: tuple[int, int], gigabytes: float) -> None:
    asked = work(per_device_batch_size=sizes[0], gradient_accumulation_steps=sizes[1])
    cut = fitting.cut_to_fit(facts_of(SMALL), asked, cpu(gigabytes))
    assert cut is not None
    assert cut.work.examples_a_step == sizes[0] * sizes[1]
    assert cut.work.per_device_batch_size <= sizes[0]
    assert cut.forecast.total <= 0.9 * gigabytes * 1e9
    assert bool(cut.sentences()) != cut.is_as_asked
    # What would be faster did not fit.
    if cut.work.recompute:
        alone = replace(asked, per_device_batch_size=1, gradient_accumulation_steps=sizes[0] * sizes[1])
        assert total(SMALL, alone, cpu(gigabytes)) > 0.9 * gigabytes * 1e9


def test_batches_go_first_and_then_activations() -> None:
    cuts = {size: fitting.cut_to_fit(facts_of(SMALL), work(), cpu(size)) for size in (40, 12, 2.5)}
    found = {size: (cut.work.per_device_batch_size, cut.work.recompute) for size, cut in cuts.items() if cut}
    assert found[40] == (4, False)
    assert found[12] == (2, False)
    assert found[2.5] == (1, True)


def test_short_examples_are_not_refused_for_the_sake_of_speed() -> None:
    """A pass is filled up to 1024 tokens because that is fast; with examples of 120 it need not be."""
    machine = cpu(1.6)
    cut = fitting.cut_to_fit(facts_of(SMALL), work(data=SHORT), machine)
    assert cut is not None
    assert cut.work.most_tokens == 120
    assert fitting.cut_to_fit(facts_of(SMALL), work(), machine) is None


# What would fit instead


@pytest.mark.parametrize(
    ("config", "wanted", "machine"),
    [
        (SMALL, work(), cpu(1.8)),
        (SMALL, work("full", data=SHORT), cpu(3)),
        (LARGE, work(), gpu(16)),
        (LARGE, work("full"), gpu(40)),
        (SMALL, work(lora_r=512, max_seq_length=64), cpu(3)),
    ],
)
def test_each_way_out_really_fits(config: dict[str, Any], wanted: Work, machine: Machine) -> None:
    facts = facts_of(config)
    assert fitting.cut_to_fit(facts, wanted, machine) is None
    found = fitting.alternatives(facts, wanted, machine)
    changes = {"max_seq_length": found.max_seq_length, "method": found.method, "lora_r": found.lora_r}
    given = {name: value for name, value in changes.items() if value is not None}
    assert given or found.largest_parameters
    for name, value in given.items():
        changed: Any = {name: value}
        assert fitting.cut_to_fit(facts, replace(wanted, **changed), machine) is not None, name
        assert str(value) in found.sentence()
    if found.largest_parameters is not None:
        assert facts.num_parameters is not None
        assert found.largest_parameters < facts.num_parameters


def test_with_no_way_out_a_larger_worker_is_named() -> None:
    assert fitting.alternatives(facts_of(SMALL), work(), cpu(0.5)).sentence() == "Use a worker with more memory."
