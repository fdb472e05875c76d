"""What a model's config.json says: its shape, and by formula how many parameters that makes."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """How an architecture with gated MLP blocks differs from Llama's.

    `attention_bias` is the default; `query_key_norms` are norms of one head's size; None for `kv_heads` means as
    many as attention heads, None for `head_dim` means hidden size over heads.
    """

    tied: bool = False
    kv_heads: int | None = None
    head_dim: int | None = None
    attention_bias: bool = False
    output_bias: bool = True  # whether an attention bias covers the output projection as well
    norms_per_layer: int = 2
    query_key_norms: bool = False
    fused: bool = False  # q, k, v in one matrix, gate and up in another


FAMILIES = {
    "llama": Family(),
    "mistral": Family(kv_heads=8),
    "qwen2": Family(kv_heads=32, attention_bias=True, output_bias=False),
    "qwen3": Family(kv_heads=32, head_dim=128, query_key_norms=True),
    "gemma": Family(tied=True, kv_heads=16, head_dim=256),
    "gemma2": Family(tied=True, kv_heads=4, head_dim=256, norms_per_layer=4),
    "gemma3_text": Family(tied=True, kv_heads=4, head_dim=256, norms_per_layer=4, query_key_norms=True),
    "phi3": Family(fused=True),
    "smollm3": Family(tied=True, kv_heads=4),
}
# The others ignore these keys of the config.
_READS_ATTENTION_BIAS = {"llama", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3"}
_READS_MLP_BIAS = {"llama", "smollm3"}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; None where the config does not say."""

    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool = False


def read_shape(config: dict[str, Any]) -> Shape:
    """The shape in a decoded config.json, its architecture's defaults filled in; never raises for odd values."""
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    family = FAMILIES.get(str(text.get("model_type") or config.get("model_type")), Family())
    hidden = _size(text, "hidden_size", "n_embd", "d_model")
    heads = _size(text, "num_attention_heads", "n_head")
    derived = hidden // heads if hidden and heads else None
    # Absent means the architecture's default; null means as many as attention heads.
    kv_heads = family.kv_heads if "num_key_value_heads" not in text else _size(text, "num_key_value_heads")
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return Shape(
        vocab_size=_size(text, "vocab_size"),
        max_position_embeddings=_size(text, "max_position_embeddings", "n_positions"),
        hidden_size=hidden,
        intermediate_size=_size(text, "intermediate_size", "n_inner"),
        num_layers=_size(text, "num_hidden_layers", "n_layer"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        head_dim=_size(text, "head_dim") or family.head_dim or derived,
        tie_word_embeddings=tied if isinstance(tied, bool) else family.tied,
    )


def count_parameters(config: dict[str, Any]) -> int | None:
    """Exact number of parameters by formula; None for architectures that are not in FAMILIES or lack a size."""
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    shape = read_shape(config)
    hidden, vocab, layers = shape.hidden_size, shape.vocab_size, shape.num_layers
    matrices = linear_shapes(str(model_type), shape)
    if family is None or matrices is None or hidden is None or vocab is None or layers is None:
        return None
    assert shape.num_attention_heads is not None
    assert shape.num_key_value_heads is not None
    assert shape.head_dim is not None
    assert shape.intermediate_size is not None
    attention_bias = family.attention_bias
    if model_type in _READS_ATTENTION_BIAS:
        attention_bias = bool(config.get("attention_bias", attention_bias))
    mlp_bias = model_type in _READS_MLP_BIAS and bool(config.get("mlp_bias"))
    query_size, kv_size = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    layer = sum(inputs * outputs for inputs, outputs in matrices) + family.norms_per_layer * hidden
    if attention_bias:
        layer += query_size + 2 * kv_size + (hidden if family.output_bias else 0)
    if mlp_bias:
        layer += 2 * shape.intermediate_size + hidden
    if family.query_key_norms:
        layer += 2 * shape.head_dim
    embeddings = vocab * hidden * (1 if shape.tie_word_embeddings else 2)
    return layers * layer + embeddings + hidden


def linear_shapes(model_type: str | None, shape: Shape) -> list[tuple[int, int]] | None:
    """(inputs, outputs) of one layer's linear modules, for the architectures in FAMILIES; None elsewhere."""
    family = FAMILIES.get(str(model_type))
    hidden, inner = shape.hidden_size, shape.intermediate_size
    heads, kv_heads, head_dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    if family is None or not (hidden and inner and heads and kv_heads and head_dim and shape.num_layers):
        return None
    query_size, kv_size = heads * head_dim, kv_heads * head_dim
    if family.fused:
        return [(hidden, query_size + 2 * kv_size), (query_size, hidden), (hidden, 2 * inner), (inner, hidden)]
    attention = [(hidden, query_size), (hidden, kv_size), (hidden, kv_size), (query_size, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def _size(config: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
