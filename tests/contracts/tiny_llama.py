"""A random Llama of about 0.1 M parameters that can really be trained, written to a folder without loading torch."""

import json
from pathlib import Path
from typing import Any

import numpy
import safetensors.numpy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.trainers.tiny import CHATML

VOCABULARY, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 512, 64, 128, 2, 4, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "dtype": "float32",
}
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def write(folder: Path, text: str) -> None:
    """The model's files; the tokenizer is trained on `text`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    safetensors.numpy.save_file(_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "chat_template": CHATML,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def _weights() -> dict[str, Any]:
    kv = HIDDEN * KV_HEADS // HEADS
    # The tied head must be able to prefer a token, so the embeddings are large.
    shapes = {"model.embed_tokens.weight": ((VOCABULARY, HIDDEN), 0.2)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", kv, HIDDEN),
            ("self_attn.v_proj", kv, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ):
            shapes[f"{at}.{name}.weight"] = ((rows, columns), 0.02)
    dice = numpy.random.default_rng(0)
    tensors = {
        name: dice.standard_normal(shape, dtype=numpy.float32) * scale for name, (shape, scale) in shapes.items()
    }
    norms = [f"model.layers.{n}.{part}_layernorm.weight" for n in range(LAYERS) for part in ("input", "post_attention")]
    ones = {name: numpy.ones(HIDDEN, dtype=numpy.float32) for name in [*norms, "model.norm.weight"]}
    return {name: numpy.asarray(value, dtype=numpy.float32) for name, value in {**tensors, **ones}.items()}
