"""Sizes of models and fine-tunings: against transformers' own counts, the contract's example, and each other."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backend.providers.architecture import count_parameters
from backend.providers.model_facts import ModelFacts, describe
from backend.training import sizing

FILES = ("config.json", "model.safetensors", "tokenizer.json")


def llama_like(model_type: str, vocab: int, hidden: int, inner: int, layers: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    } | more


# Counted by building each model in transformers on torch's meta device.
CONFIGS = {
    "Llama-3.1-8B": (llama_like("llama", 128_256, 4096, 14_336, 32), 8_030_261_248),
    "Qwen2.5-7B": (
        llama_like("qwen2", 152_064, 3584, 18_944, 28, num_attention_heads=28, num_key_value_heads=4),
        7_615_616_512,
    ),
    "Mistral-7B-v0.3": (llama_like("mistral", 32_768, 4096, 14_336, 32), 7_248_023_552),
    "Qwen3-8B": (llama_like("qwen3", 151_936, 4096, 12_288, 36, head_dim=128), 8_190_735_360),
    "Llama-3.2-1B": (
        llama_like("llama", 128_256, 2048, 8192, 16, head_dim=64, tie_word_embeddings=True),
        1_235_814_400,
    ),
}


def facts_of(name: str) -> ModelFacts:
    return describe(f"acme/{name}", "hub", CONFIGS[name][0], filenames=FILES, license_name="mit")


# Counting


@pytest.mark.parametrize("name", CONFIGS)
def test_the_formula_counts_what_transformers_builds(name: str) -> None:
    config, wanted = CONFIGS[name]
    assert count_parameters(config) == wanted


@pytest.mark.timeout(120)
def test_every_family_agrees_with_transformers_defaults_and_biases_included(tmp_path: Path) -> None:
    sizes = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    biased = {"attention_bias": True, "mlp_bias": True}
    variants: list[dict[str, Any]] = [
        {"model_type": family, **sizes, **heads, **more}
        for family in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3")
        for more in ({}, biased, {"tie_word_embeddings": family in ("llama", "qwen2")}, {"head_dim": 12})
        if not (family in ("phi3", "smollm3") and "head_dim" in more)
    ]
    variants.append({"model_type": "llama", **sizes, "num_attention_heads": 8, "num_key_value_heads": None})
    folders = []
    for number, variant in enumerate(variants):
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(variant | special))
        folders.append(str(folder))
    code = (
        "import json, sys\nfrom pathlib import Path\n"
        "from backend.trainers.config import SizingConfig\nfrom backend.trainers.sizing import count_parameters\n"
        "for folder in sys.argv[1:]:\n"
        "    print('COUNT', json.dumps(count_parameters(SizingConfig(config_dir=Path(folder)))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.removeprefix("COUNT ") for line in done.stdout.splitlines() if line.startswith("COUNT ")]
    assert len(lines) == len(variants)
    for variant, line in zip(variants, lines, strict=True):
        counted = json.loads(line)
        facts = describe("x", "hub", variant, filenames=FILES)
        ours = (facts.num_parameters, sizing.linear_parameters(facts), sizing.lora_parameters(facts))
        assert ours == tuple(counted[key] for key in ("num_parameters", "linear_parameters", "lora_parameters")), (
            variant
        )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "novel", "hidden_size": 64},
        {"model_type": "llama"},
        {"model_type": "llama", "vocab_size": "9"},
    ],
)
def test_what_the_formula_does_not_know_it_does_not_guess(config: dict[str, Any]) -> None:
    assert count_parameters(config) is None
    facts = describe("x", "hub", config, filenames=FILES)
    assert set(sizing.public_numbers(facts).values()) == {None}


# The contract's figures


def test_the_example_of_the_contract_comes_out() -> None:
    numbers = sizing.public_numbers(facts_of("Llama-3.1-8B"))
    assert numbers["num_parameters"] == 8_030_000_000
    assert numbers["estimated_vram_fp16_gb"] == 16.06
    assert numbers["estimated_vram_4bit_gb"] == 5.52
    assert numbers["num_parameters_exact"] == 8_030_261_248


def test_the_typical_bits_are_the_mean_of_the_models_that_they_stand_for() -> None:
    bits = []
    for name in ("Llama-3.1-8B", "Qwen2.5-7B", "Mistral-7B-v0.3", "Qwen3-8B"):
        size = sizing.weights_bytes_4bit(facts_of(name))
        assert size is not None
        bits.append(8 * size / CONFIGS[name][1])
    assert sum(bits) / 4 == pytest.approx(sizing.TYPICAL_4BIT_BITS, abs=0.01)


def test_small_counts_are_not_rounded_away() -> None:
    config = llama_like("llama", 96, 16, 32, 2, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    numbers = sizing.public_numbers(describe("x", "hub", config, filenames=FILES))
    assert numbers["num_parameters_exact"] == 6224 == numbers["num_parameters"]


# Fine-tuning


def test_the_adapter_of_llama_has_its_known_size() -> None:
    assert sizing.lora_parameters(facts_of("Llama-3.1-8B"), 16) == 41_943_040


def test_the_parts_add_up() -> None:
    memory = sizing.training_memory(facts_of("Llama-3.1-8B"), "qlora", batch_size=1, sequence_length=512, lora_r=16)
    assert memory is not None
    linear = 6_979_321_856
    assert memory.weights == pytest.approx(linear * (0.5 + 1 / 64 + 4 / 16384) + 4 * (8_030_261_248 - linear), abs=1)
    assert (memory.adapters, memory.gradients, memory.optimizer) == (167_772_160, 167_772_160, 83_886_080)
    parts = (memory.weights, memory.adapters, memory.gradients, memory.optimizer, memory.activations, memory.overhead)
    assert memory.total == sum(parts)


@pytest.mark.parametrize("name", CONFIGS)
def test_more_work_needs_more_memory_and_qlora_less_than_lora(name: str) -> None:
    facts = facts_of(name)

    def total(method: sizing.Method = "lora", **changes: int) -> int:
        sizes = {"batch_size": 2, "sequence_length": 1024, "lora_r": 16} | changes
        memory = sizing.training_memory(facts, method, **sizes)
        assert memory is not None
        return memory.total

    assert total() < total(batch_size=4) < total(batch_size=8)
    assert total() < total(sequence_length=2048)
    assert total() < total(lora_r=64)
    assert total("qlora") < total("lora")
    assert total() > 2 * CONFIGS[name][1]


def test_sequences_are_not_counted_longer_than_the_context() -> None:
    config = CONFIGS["Llama-3.1-8B"][0] | {"max_position_embeddings": 512}
    numbers = sizing.training_numbers(describe("x", "hub", config, filenames=FILES), sequence_length=4096)
    assert numbers["sequence_length"] == 512


# Which method


def gpu(vram_gb: float, four_bit: bool = True) -> dict[str, Any]:
    return {"cuda_available": True, "bnb_available": four_bit, "vram_total_gb": vram_gb}


def test_the_contracts_words_for_24_gb() -> None:
    words = "24GB VRAM detected. QLoRA recommended for 8B+ models to save memory."
    assert sizing.recommend_method(gpu(24.0)) == ("qlora", words)
    # The same card as a worker reports it, in bytes of 10^9 a GB.
    report = {"cuda_available": True, "bnb_available": True, "gpus": [{"name": "x", "vram_total_gb": 25.77}]}
    assert sizing.recommend_method(report) == ("qlora", words)


@pytest.mark.parametrize("report", [{"cuda_available": False}, {}, {"cuda_available": False, "gpus": []}])
def test_the_contracts_words_without_a_gpu(report: dict[str, Any]) -> None:
    words = "No CUDA GPU detected. GPU fine-tuning not possible on this machine."
    assert sizing.recommend_method(report) == (None, words)
    assert sizing.recommend_method(report, facts_of("Llama-3.1-8B")) == (None, words)


def test_without_a_report_it_says_what_to_start() -> None:
    method, reason = sizing.recommend_method(None)
    assert method is None and "Start one" in reason


@pytest.mark.parametrize(("vram_gb", "wanted"), [(4, "qlora"), (8, "qlora"), (16, "qlora"), (48, "lora"), (80, "lora")])
def test_large_cards_need_no_quantisation(vram_gb: float, wanted: str) -> None:
    method, reason = sizing.recommend_method(gpu(vram_gb))
    assert method == wanted and reason.startswith(f"{vram_gb}GB VRAM detected.")


def test_without_four_bit_layers_qlora_is_not_recommended() -> None:
    assert sizing.recommend_method(gpu(24.0, four_bit=False))[0] == "lora"
    method, reason = sizing.recommend_method(gpu(16.0, four_bit=False), facts_of("Llama-3.1-8B"))
    assert method is None and "bitsandbytes" in reason


@pytest.mark.parametrize(
    ("name", "vram_gb", "wanted"),
    [
        ("Llama-3.1-8B", 80, "lora"),
        ("Llama-3.1-8B", 24, "qlora"),
        ("Llama-3.1-8B", 12, "qlora"),
        ("Llama-3.1-8B", 8, None),
        ("Llama-3.2-1B", 24, "lora"),
    ],
)
def test_a_model_gets_the_method_that_fits_it(name: str, vram_gb: float, wanted: str | None) -> None:
    facts = facts_of(name)
    method, reason = sizing.recommend_method(gpu(vram_gb), facts)
    assert method == wanted and facts.model_id in reason
