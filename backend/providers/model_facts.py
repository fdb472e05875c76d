"""What is known of a base model, and whether it can be fine-tuned here."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

from backend.providers.architecture import count_parameters, read_shape
from backend.providers.errors import ModelNotTrainable

Source = Literal["hub", "folder", "bundled"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# The other keys of config.json say nothing about size or kind.
_KEPT_KEYS = (
    "architectures model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim vocab_size max_position_embeddings tie_word_embeddings attention_bias mlp_bias dtype torch_dtype"
).split()
_RESTRICTED = (
    "Access to this model is restricted. Accept its licence on its page of the HuggingFace Hub, set HF_TOKEN to a "
    "token of that account, and resolve the model again."
)
_NO_CONFIG = (
    "It has no config.json, so it is no base model that transformers loads (an adapter or a GGUF file alone is none). "
    "Choose the base model that it was made from."
)


@dataclass(frozen=True)
class ModelFacts:
    """`revision` is a commit for source "hub", else None. `num_parameters` is exact, or None when nothing tells it.

    `trainable` False comes with the reasons first in `warnings`. `size_bytes`: files to download or on disk.
    `config` holds the keys of config.json that say something about size or kind.
    """

    model_id: str
    source: Source
    revision: str | None
    model_type: str | None
    architecture: str | None
    num_parameters: int | None
    vocab_size: int | None
    max_position_embeddings: int | None
    hidden_size: int | None
    intermediate_size: int | None
    num_layers: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    head_dim: int | None
    tie_word_embeddings: bool
    license: str | None
    dtype: str | None
    size_bytes: int | None
    warnings: list[str]
    trainable: bool
    config: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `ModelFacts(**value)` turns them back."""
        return asdict(self)

    def require_trainable(self) -> None:
        """Raises ModelNotTrainable with the reasons."""
        if not self.trainable:
            raise ModelNotTrainable(model_id=self.model_id, reason=" ".join(self.warnings))


def describe(
    model_id: str,
    source: Source,
    config: dict[str, Any] | None,
    *,
    filenames: Collection[str],
    revision: str | None = None,
    num_parameters: int | None = None,
    license_name: str | None = None,
    size_bytes: int | None = None,
    refusals: Collection[str] = (),
) -> ModelFacts:
    """Facts from a decoded config.json and the names of the model's files; `refusals` adds reasons of the caller's."""
    known = config or {}
    reasons = [*refusals, *_refusals(config, filenames)]
    count = num_parameters if num_parameters is not None else count_parameters(known)
    notes = []
    if license_name is None:
        notes.append("Its licence is not stated: check that you may use it.")
    if count is None:
        notes.append("Its number of parameters is unknown, so its memory cannot be estimated.")
    shape = read_shape(known)
    dtype = known.get("dtype") or known.get("torch_dtype")
    model_type = known.get("model_type")
    return ModelFacts(
        model_id=model_id,
        source=source,
        revision=revision,
        model_type=str(model_type) if model_type else None,
        architecture=_architecture(known),
        num_parameters=count,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tie_word_embeddings,
        license=license_name,
        dtype=str(dtype) if dtype else None,
        size_bytes=size_bytes,
        warnings=[*reasons, *notes],
        trainable=not reasons,
        config={key: known[key] for key in _KEPT_KEYS if key in known},
    )


def gated(
    model_id: str,
    revision: str | None,
    *,
    model_type: str | None = None,
    architecture: str | None = None,
    num_parameters: int | None = None,
    license_name: str | None = None,
) -> ModelFacts:
    """Facts of a model whose files are closed to us: what the Hub tells everybody."""
    return ModelFacts(
        model_id=model_id,
        source="hub",
        revision=revision,
        model_type=model_type,
        architecture=architecture,
        num_parameters=num_parameters,
        vocab_size=None,
        max_position_embeddings=None,
        hidden_size=None,
        intermediate_size=None,
        num_layers=None,
        num_attention_heads=None,
        num_key_value_heads=None,
        head_dim=None,
        tie_word_embeddings=False,
        license=license_name,
        dtype=None,
        size_bytes=None,
        warnings=[_RESTRICTED],
        trainable=False,
        config={},
    )


def _refusals(config: dict[str, Any] | None, filenames: Collection[str]) -> list[str]:
    """Why the model cannot be fine-tuned here; each a sentence that says what to choose instead."""
    if config is None:
        return [_NO_CONFIG]
    reasons = []
    architecture = _architecture(config)
    if "auto_map" in config:
        reasons.append(
            "It brings Python code of its own (auto_map), which is never run here. Choose a model whose architecture "
            "transformers supports by itself."
        )
    if architecture is None or not (architecture.endswith("ForCausalLM") or architecture == "GPT2LMHeadModel"):
        what = f"Its architecture {architecture}" if architecture else "It names no architecture and"
        reasons.append(f"{what} is no causal language model. Choose a text-generation model (...ForCausalLM).")
    if isinstance(quantization := config.get("quantization_config"), dict):
        method = quantization.get("quant_method", "quantised")
        reasons.append(
            f"Its weights are already quantised ({method}). Choose the original model: the method qlora quantises it."
        )
    if not has_safetensors(filenames):
        reasons.append(
            "It has no safetensors weights (model.safetensors); pickled weights can run code and are never loaded. "
            "Choose a model or revision with .safetensors files."
        )
    if not any(name in filenames for name in TOKENIZER_FILES):
        reasons.append("It has no tokenizer files (tokenizer.json). Choose a model that brings its tokenizer.")
    return reasons


def has_safetensors(filenames: Collection[str]) -> bool:
    """Whether the weights are there under the names that transformers looks for."""
    return "model.safetensors" in filenames or "model.safetensors.index.json" in filenames


def _architecture(config: dict[str, Any]) -> str | None:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else None
