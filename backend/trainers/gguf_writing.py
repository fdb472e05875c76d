"""A model folder of safetensors as one GGUF file, in f16 or q8_0, one tensor in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy
import torch
from safetensors import safe_open

from backend.trainers import loading
from backend.trainers.errors import EXPORT_UNSUPPORTED, TrainerError
from backend.trainers.gguf_tokenizer import read_vocabulary

Precision = Literal["f16", "q8_0"]
_FILE_TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
_ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}
SUPPORTED = tuple(_ARCHITECTURES)
_LARGEST_F16 = float(numpy.finfo(numpy.float16).max)


def require_supported(config: dict[str, Any]) -> None:
    """Raise TrainerError EXPORT_UNSUPPORTED unless the model's config is of a family that is written here."""
    name = (config.get("architectures") or ["unknown"])[0]
    if name not in _ARCHITECTURES:
        raise _unsupported(f"'{name}' is not among {', '.join(_ARCHITECTURES)}")
    if config.get("hidden_act", "silu") != "silu":
        raise _unsupported(f"the activation '{config['hidden_act']}' is not 'silu'")
    if config.get("use_sliding_window"):
        raise _unsupported("its layers attend through a sliding window")
    kind = _rope(config).get("rope_type", "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise _unsupported(f"its positions are scaled by '{kind}'")


def write_gguf(folder: Path, path: Path, precision: Precision, *, name: str, license_name: str | None = None) -> None:
    """Write the model in `folder` to `path`, aside first: the file is whole or not there.

    Matrices are in `precision`, vectors (norms, biases) in f32. Raises TrainerError EXPORT_UNSUPPORTED.
    """
    config = loading.read_model_config(folder)
    require_supported(config)
    architecture = _ARCHITECTURES[config["architectures"][0]]
    aside = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(aside, gguf.MODEL_ARCH_NAMES[architecture])
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name)
        if license_name:
            writer.add_license(license_name)
        writer.add_file_type(_FILE_TYPES[precision])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        with ExitStack() as stack:
            tensors = _Tensors(stack, folder)
            _add_shape(writer, config)
            _add_tokenizer(writer, folder, tensors.shape("model.embed_tokens.weight")[0])
            _write_tensors(writer, tensors, config, architecture, precision)
        writer.close()
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


class _Tensors:
    """The weights of a folder, in one file or many, read one at a time."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt"))
            self._files |= dict.fromkeys(file.keys(), file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def shape(self, name: str) -> list[int]:
        if name not in self._files:
            raise _unsupported(f"it has no tensor '{name}'")
        return list(self._files[name].get_slice(name).get_shape())

    def read(self, name: str) -> numpy.ndarray[Any, numpy.dtype[numpy.float32]]:
        found: numpy.ndarray[Any, numpy.dtype[numpy.float32]] = self._files[name].get_tensor(name).float().numpy()
        return found


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_size = _head_size(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(_kv_heads(config))
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_size)
    writer.add_vocab_size(config["vocab_size"])
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR if kind == "linear" else gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        if kind == "yarn":
            original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
            writer.add_rope_scaling_orig_ctx_len(int(original))


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    vocabulary = read_vocabulary(folder, size)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.splitter)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    tokenizer = loading.load_tokenizer(folder)
    for kind, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            kind(number)
    begun = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(begun) and begun[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(begun) > 1 and begun[-1] == tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def _write_tensors(
    writer: gguf.GGUFWriter,
    tensors: _Tensors,
    config: dict[str, Any],
    architecture: gguf.MODEL_ARCH,
    precision: Precision,
) -> None:
    """Name, shape and kind of all first, as the format wants it; then the data, tensor by tensor."""
    known = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    tied = bool(config.get("tie_word_embeddings"))
    plan: list[tuple[str, gguf.GGMLQuantizationType]] = []
    factors = _long_context_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for name in tensors:
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        target = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise _unsupported(f"llama.cpp knows no tensor '{name}' of it")
        shape = tensors.shape(name)
        kind = _kind(shape, precision)
        size = math.prod(shape)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(target, shape, numpy.dtype(numpy.float32), size // block * block_bytes, raw_dtype=kind)
        plan.append((name, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for name, kind in plan:
        writer.write_tensor_data(_encoded(_arranged(name, tensors.read(name), config, architecture), kind, name))


def _kind(shape: list[int], precision: Precision) -> gguf.GGMLQuantizationType:
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    # q8_0 packs 32 values of a row together; a row that does not divide stays f16.
    packs = precision == "q8_0" and shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0] == 0
    return gguf.GGMLQuantizationType.Q8_0 if packs else gguf.GGMLQuantizationType.F16


def _encoded(values: Any, kind: gguf.GGMLQuantizationType, name: str) -> Any:
    if kind == gguf.GGMLQuantizationType.F32:
        return numpy.ascontiguousarray(values)
    if kind == gguf.GGMLQuantizationType.Q8_0:
        return gguf.quants.quantize(numpy.ascontiguousarray(values), kind)
    if float(numpy.abs(values).max(initial=0.0)) > _LARGEST_F16:
        raise _unsupported(f"'{name}' holds values that f16 cannot")
    return values.astype(numpy.float16)


def _arranged(name: str, values: Any, config: dict[str, Any], architecture: gguf.MODEL_ARCH) -> Any:
    """llama.cpp turns neighbours of a query or key where transformers turns halves, in this one family."""
    if architecture != gguf.MODEL_ARCH.LLAMA:
        return values
    if ".q_proj." in name:
        heads = config["num_attention_heads"]
    elif ".k_proj." in name:
        heads = _kv_heads(config)
    else:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _long_context_factors(config: dict[str, Any]) -> Any:
    """By what llama3's rope scaling divides each frequency, as f32; None for models without it.

    Long waves are stretched by `factor`, short ones stay, and those between go over smoothly.
    """
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    head_size, original = _head_size(config), rope["original_max_position_embeddings"]
    frequencies = rope["rope_theta"] ** -(torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    turns = original * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    kept = smooth + (1 - smooth) / rope["factor"]
    return (1 / kept).to(torch.float32).numpy()


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Newer configs hold all in one object; older ones the base beside it, and the kind as `type`."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if "type" in found:
        found.setdefault("rope_type", found["type"])
    found.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    return found


def _kv_heads(config: dict[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _head_size(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _unsupported(why: str) -> TrainerError:
    return TrainerError(
        EXPORT_UNSUPPORTED,
        f"GGUF cannot be written here for this model: {why}. Export the formats adapter and merged instead.",
    )
