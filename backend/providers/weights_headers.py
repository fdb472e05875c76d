"""Exact facts from the headers of weight files (safetensors, GGUF), without reading the weights."""

import json
import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_HEADER_LIMIT_BYTES = 100_000_000
_GGUF_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_GGUF_STRING, _GGUF_ARRAY = 8, 9
# Constant tables that old exports stored beside the parameters.
_BUFFER = re.compile(r"(rotary_emb\.inv_freq|\.(attn|attention)\.(masked_)?bias)$")


class HeaderUnreadable(ValueError):
    """A weight file is absent, cut short or of another format; the message names it."""


@dataclass(frozen=True)
class WeightsHeader:
    """`num_parameters` counts an output head that is tied to the embeddings once; `has_output_head` is of its own."""

    num_parameters: int
    has_output_head: bool


def read_safetensors(folder: Path, *, tied: bool) -> WeightsHeader:
    """Count the parameters of the (sharded) safetensors model in `folder`. Raises HeaderUnreadable."""
    shapes: dict[str, list[int]] = {}
    for name in _shards(folder):
        shapes |= _read_safetensors_header(folder / name)
    head = [name for name in shapes if name.endswith("lm_head.weight")]
    if tied and any(name.endswith(("embed_tokens.weight", "wte.weight")) for name in shapes):
        for name in head:
            del shapes[name]
        head = []
    count = sum(math.prod(shape) for name, shape in shapes.items() if not _BUFFER.search(name))
    return WeightsHeader(count, has_output_head=bool(head))


def _shards(folder: Path) -> list[str]:
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HeaderUnreadable(f"neither {SINGLE_FILE} nor a readable {INDEX_FILE} is there") from error
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise HeaderUnreadable(f"{INDEX_FILE} names files outside the folder")
    return names


def _read_safetensors_header(path: Path) -> dict[str, list[int]]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_LIMIT_BYTES:
                raise HeaderUnreadable(f"{path.name} is no safetensors file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if path.stat().st_size != 8 + length + end:
            raise HeaderUnreadable(f"{path.name} is cut short")
        return {name: [int(size) for size in entry["shape"]] for name, entry in header.items()}
    except (OSError, struct.error) as error:
        raise HeaderUnreadable(f"{path.name} is missing or cut short") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, HeaderUnreadable):
            raise
        raise HeaderUnreadable(f"{path.name} is no safetensors file") from error


def read_gguf(path: Path) -> tuple[dict[str, Any], WeightsHeader]:
    """(metadata, counts) of a GGUF file, version 2 or 3; of arrays only their length. Raises HeaderUnreadable."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _GgufReader(data).read()
    except (OSError, struct.error, UnicodeDecodeError, KeyError, IndexError, ValueError) as error:
        raise HeaderUnreadable(f"{path.name} is no readable GGUF file") from error


class _GgufReader:
    """Walks the header once; the format is little-endian, strings have a 64-bit length before them."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def read(self) -> tuple[dict[str, Any], WeightsHeader]:
        if self._data[:4] != b"GGUF":
            raise ValueError("no GGUF magic")
        self._at = 4
        if self._number("<I") not in (2, 3):
            raise ValueError("unknown GGUF version")
        tensors, entries = self._number("<Q"), self._number("<Q")
        metadata = {self._string(): self._value(self._number("<I")) for _ in range(entries)}
        count, names = 0, set()
        for _ in range(tensors):
            names.add(self._string())
            count += math.prod(self._number("<Q") for _ in range(self._number("<I")))
            self._at += 12  # the tensor's type and offset
        return metadata, WeightsHeader(count, has_output_head="output.weight" in names)

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        start = self._skip_string()
        return self._data[start : self._at].decode("utf-8")

    def _skip_string(self) -> int:
        length = self._number("<Q")
        start = self._at
        self._at += length
        if self._at > len(self._data):
            raise ValueError("a string ends after the file")
        return start

    def _value(self, kind: int) -> Any:
        if kind == _GGUF_STRING:
            return self._string()
        if kind != _GGUF_ARRAY:
            return self._number(_GGUF_SCALARS[kind])
        inner, length = self._number("<I"), self._number("<Q")
        if inner == _GGUF_STRING:
            for _ in range(length):
                self._skip_string()
        else:
            self._at += length * struct.calcsize(_GGUF_SCALARS[inner])
        return length
