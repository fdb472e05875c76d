"""A Whisper model for CTranslate2 (model.bin) as one in HuggingFace's layout: the same tensors, one by one."""

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import save_file

_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
_TEXT_POSITIONS = 448
_HEAD_SIZE = 64
Arrays = dict[str, Any]


def convert(model: Path, folder: Path) -> Path:
    """Writes config.json and model.safetensors into `folder`."""
    with (model / "model.bin").open("rb") as file:
        tensors = _read(file)
    weights: Arrays = {}
    width = tensors["encoder/conv1/weight"].shape[0]
    for name in ("conv1", "conv2"):
        _linear(weights, f"encoder.{name}", tensors[f"encoder/{name}/weight"], tensors[f"encoder/{name}/bias"])
    layers = 0
    while f"encoder/layer_{layers}/ffn/linear_0/weight" in tensors:
        for side in ("encoder", "decoder"):
            _layer(weights, tensors, f"{side}.layers.{layers}", f"{side}/layer_{layers}", width)
        layers += 1
    for side in ("encoder", "decoder"):
        weights[f"{side}.embed_positions.weight"] = tensors[f"{side}/position_encodings/encodings"]
        _norm(weights, tensors, f"{side}.layer_norm", f"{side}/layer_norm")
    weights["decoder.embed_tokens.weight"] = tensors["decoder/embeddings/weight"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"model.{name}": np.ascontiguousarray(value.astype(np.float16)) for name, value in weights.items()},
        folder / "model.safetensors",
    )
    config = {
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": width // _HEAD_SIZE,
        "decoder_attention_heads": width // _HEAD_SIZE,
        "vocab_size": weights["decoder.embed_tokens.weight"].shape[0],
        "num_mel_bins": weights["encoder.conv1.weight"].shape[1],
        "max_source_positions": weights["encoder.embed_positions.weight"].shape[0],
        "max_target_positions": _TEXT_POSITIONS,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _layer(weights: Arrays, tensors: Arrays, target: str, source: str, width: int) -> None:
    attention = f"{source}/self_attention"
    query, key, value = np.split(tensors[f"{attention}/linear_0/weight"], 3)
    query_bias, key_bias, value_bias = np.split(tensors[f"{attention}/linear_0/bias"], 3)
    assert not key_bias.any()
    _attention(
        weights, tensors, f"{target}.self_attn", attention, "linear_1", (query, query_bias, key, value, value_bias)
    )
    if target.startswith("decoder"):
        attention = f"{source}/attention"
        key, value = np.split(tensors[f"{attention}/linear_1/weight"], 2)
        key_bias, value_bias = np.split(tensors[f"{attention}/linear_1/bias"], 2)
        assert not key_bias.any()
        asked = tensors[f"{attention}/linear_0/weight"], tensors[f"{attention}/linear_0/bias"]
        _attention(weights, tensors, f"{target}.encoder_attn", attention, "linear_2", (*asked, key, value, value_bias))
    for theirs, ours in (("linear_0", "fc1"), ("linear_1", "fc2")):
        _linear(
            weights,
            f"{target}.{ours}",
            tensors[f"{source}/ffn/{theirs}/weight"],
            tensors[f"{source}/ffn/{theirs}/bias"],
        )
    _norm(weights, tensors, f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")


def _attention(weights: Arrays, tensors: Arrays, target: str, source: str, output: str, parts: tuple[Any, ...]) -> None:
    query, query_bias, key, value, value_bias = parts
    _linear(weights, f"{target}.q_proj", query, query_bias)
    weights[f"{target}.k_proj.weight"] = key
    _linear(weights, f"{target}.v_proj", value, value_bias)
    _linear(weights, f"{target}.out_proj", tensors[f"{source}/{output}/weight"], tensors[f"{source}/{output}/bias"])
    _norm(weights, tensors, f"{target}_layer_norm", f"{source}/layer_norm")


def _linear(weights: Arrays, target: str, weight: Any, bias: Any) -> None:
    weights[f"{target}.weight"], weights[f"{target}.bias"] = weight, bias


def _norm(weights: Arrays, tensors: Arrays, target: str, source: str) -> None:
    weights[f"{target}.weight"], weights[f"{target}.bias"] = tensors[f"{source}/gamma"], tensors[f"{source}/beta"]


def _read(file: BinaryIO) -> Arrays:
    """All tensors of a model.bin by name, aliases included."""

    def number(form: str) -> int:
        return int(struct.unpack(f"<{form}", file.read(struct.calcsize(form)))[0])

    def text() -> str:
        return file.read(number("H"))[:-1].decode()

    number("I")
    assert text() == "WhisperSpec"
    number("I")
    tensors: Arrays = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind = _TYPES[number("B")]
        tensors[name] = np.frombuffer(file.read(number("I")), dtype=kind).reshape(shape)
    for _ in range(number("I")):
        alias = text()
        tensors[alias] = tensors[text()]
    return tensors
