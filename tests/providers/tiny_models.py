"""Small real models for the tests: config, safetensors weights and a tokenizer."""

import json
from typing import Any

import numpy
import safetensors.numpy
from tokenizers import Tokenizer, models, pre_tokenizers

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
# Embeddings 96x16; a layer: q, o 16x16, k, v 16x8, gate, up, down 16x32, two norms of 16; one last norm.
TINY_PARAMETERS = 96 * 16 + 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32 + 2 * 16) + 16


def tiny_tensors() -> dict[str, Any]:
    sizes = {"model.embed_tokens.weight": (96, 16), "model.norm.weight": (16,)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        sizes |= {
            f"{at}.self_attn.q_proj.weight": (16, 16),
            f"{at}.self_attn.k_proj.weight": (8, 16),
            f"{at}.self_attn.v_proj.weight": (8, 16),
            f"{at}.self_attn.o_proj.weight": (16, 16),
            f"{at}.mlp.gate_proj.weight": (32, 16),
            f"{at}.mlp.up_proj.weight": (32, 16),
            f"{at}.mlp.down_proj.weight": (16, 32),
            f"{at}.input_layernorm.weight": (16,),
            f"{at}.post_attention_layernorm.weight": (16,),
        }
    generator = numpy.random.default_rng(0)
    return {name: generator.standard_normal(shape, dtype=numpy.float32) for name, shape in sizes.items()}


def safetensors_bytes(tensors: dict[str, Any]) -> bytes:
    return bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))


def tokenizer_bytes() -> bytes:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "one": 2, "two": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(tokenizer.to_str()).encode()


def model_files(config: dict[str, Any] | None = None) -> dict[str, bytes]:
    """A repository as they are on the Hub: what training needs, and what it must never fetch."""
    return {
        "README.md": b"---\nlicense: apache-2.0\n---\n# Tiny\n",
        "config.json": json.dumps(TINY_CONFIG if config is None else config).encode(),
        "generation_config.json": b"{}",
        "model.safetensors": safetensors_bytes(tiny_tensors()),
        "consolidated.safetensors": b"x" * 2000,
        "pytorch_model.bin": b"pickle" * 500,
        "pytorch_model.bin.index.json": b"{}",
        "optimizer.pt": b"pickle",
        "modeling_tiny.py": b"raise SystemExit",
        "original/params.json": b"{}",
        "tokenizer.json": tokenizer_bytes(),
        "tokenizer_config.json": b"{}",
        "special_tokens_map.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
    }
