"""GGUF files of every family and kind of tokenizer, each loaded by llama.cpp and compared with transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.trainers.errors import TrainerError
from tests.trainers.tiny import CHATML, EVAL_ROWS, TRAIN_ROWS, Child

SIZE = 640
SHAPE: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama with long context": ("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE}),
    "llama with stretched positions": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "llama with biases": ("LlamaForCausalLM", {"attention_bias": True}),
    "mistral": ("MistralForCausalLM", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
}
TEXTS = [
    "Which colour has the lid? It's 12345 mm wide, isn't it?\n\n\tYes:  3.14 (about).",
    "L'été dernier, où étiez-vous ? À l'école n° 42, près du café.",
    "日本語 and emoji 🙂, naïve façade; tabs\tand\r\nline ends.",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def write_model(folder: Path, architecture: str, changes: dict[str, Any]) -> None:
    import torch
    import transformers

    config_type = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config_type(**{**SHAPE, **changes}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Biases and norms start as 0 and 1, where losing or swapping them would change nothing.
            if name.endswith("bias"):
                weight.normal_(0, 0.5)
            elif "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif "proj" in name:
                weight.normal_(0, 0.15)
        model.get_output_embeddings().weight.mul_(10)
    model.save_pretrained(folder)


def write_tokenizer(folder: Path, kind: str) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from backend.trainers import gguf_tokenizer

    texts = [message["content"] for row in TRAIN_ROWS + EVAL_ROWS for message in row["messages"]] + TEXTS
    if kind == "sentencepiece":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        special = ["<unk>", *SPECIAL, *[f"<0x{number:02X}>" for number in range(256)]]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
        # What is no letter of these texts is spelt in bytes.
        tokenizer.train_from_iterator(texts[:-1], trainer)
        described = json.loads(tokenizer.to_str())
        described["added_tokens"] = [
            item for item in described["added_tokens"] if not item["content"].startswith("<0x")
        ]
        tokenizer = Tokenizer.from_str(json.dumps(described))
    else:
        tokenizer = Tokenizer(models.BPE())
        rule = {"qwen2": gguf_tokenizer._QWEN2, "llama-bpe": gguf_tokenizer._LLAMA3, "tekken": gguf_tokenizer._TEKKEN}
        splitters: dict[str, Any] = {
            "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
            "smollm": pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
        }
        if kind in rule:
            splitters[kind] = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(rule[kind]), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        tokenizer.pre_tokenizer = splitters[kind]
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=600,
                special_tokens=SPECIAL,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHATML
    ).save_pretrained(folder)


def tried(folder: Path, start_child: Callable[..., Child], precision: str = "f16") -> dict[str, Any]:
    """What llama.cpp finds in the GGUF file of a model folder, along the answers of transformers."""
    import torch

    from backend.trainers import gguf_writing, loading, probing

    pytest.importorskip("xllamacpp")
    gguf_file, probes_file = folder / "model.gguf", folder / "probes.json"
    gguf_writing.write_gguf(folder, gguf_file, precision, name="tiny")  # type: ignore[arg-type]
    model = loading.load_base(folder, loading.Target("cpu", torch.float32, torch.float32))
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": "-"}] for text in TEXTS]
    probes = probing.make_probes(model, loading.load_tokenizer(folder), rows)
    assert len(probes) == len(TEXTS)
    probes_file.write_text(json.dumps([probe.as_json() for probe in probes]))
    config = {
        "gguf_file": str(gguf_file),
        "probes_file": str(probes_file),
        "output_file": str(folder / "drift.json"),
        "format": f"gguf-{precision}",
        "threads": 1,
    }
    child = start_child("gguf_probe", config)
    child.finish()
    assert (folder / "drift.json").is_file(), child.stderr()[-2000:]
    found: dict[str, Any] = json.loads((folder / "drift.json").read_text())
    assert found["runtime"] == "llama.cpp"
    return found


@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_family_computes_the_same_in_llama_cpp(
    tmp_path: Path, family: str, start_child: Callable[..., Child]
) -> None:
    write_model(tmp_path, *FAMILIES[family])
    write_tokenizer(tmp_path, "gpt-2")
    found = tried(tmp_path, start_child)
    assert found["agreement"] == 1, found
    assert found["logprob_drift"] < 0.02, found


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "qwen2", "llama-bpe", "tekken", "sentencepiece"])
def test_each_tokenizer_writes_the_same_tokens_in_llama_cpp(
    tmp_path: Path, kind: str, start_child: Callable[..., Child]
) -> None:
    write_model(tmp_path, *FAMILIES["llama"])
    write_tokenizer(tmp_path, kind)
    assert tried(tmp_path, start_child)["prompts_equal"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"type": "Unigram"}}, "Unigram"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": None}, "nothing"),
        ({"normalizer": {"type": "Lowercase"}}, "normalises"),
    ],
)
def test_tokenizers_that_llama_cpp_does_not_have_are_refused(
    tmp_path: Path, base_model: Path, change: dict[str, Any], words: str
) -> None:
    from backend.trainers.gguf_tokenizer import read_vocabulary

    described = json.loads((base_model / "tokenizer.json").read_text())
    described.update(change)
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(TrainerError) as caught:
        read_vocabulary(tmp_path, 512)
    assert caught.value.code == "EXPORT_UNSUPPORTED"
    assert words in str(caught.value)


def test_a_tokenizer_larger_than_the_embedding_is_refused(base_model: Path) -> None:
    from backend.trainers.gguf_tokenizer import read_vocabulary

    with pytest.raises(TrainerError):
        read_vocabulary(base_model, 100)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["GPT2LMHeadModel"]},
        {"architectures": ["LlamaForCausalLM"], "hidden_act": "gelu"},
        {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True},
        {"architectures": ["LlamaForCausalLM"], "rope_scaling": {"type": "longrope"}},
        {},
    ],
)
def test_what_the_writer_does_not_know_is_refused(config: dict[str, Any]) -> None:
    from backend.trainers.gguf_writing import require_supported

    with pytest.raises(TrainerError) as caught:
        require_supported(config)
    assert caught.value.code == "EXPORT_UNSUPPORTED"


def test_a_file_that_could_not_be_written_whole_is_not_there(tmp_path: Path, base_model: Path) -> None:
    import shutil

    from backend.trainers.gguf_writing import write_gguf

    folder = shutil.copytree(base_model, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TrainerError):
        write_gguf(folder, tmp_path / "model.gguf", "f16", name="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
