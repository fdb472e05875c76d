"""The formats in which a finished run leaves, and how much disk they take."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import unquote, urlsplit

from backend.kit.config import Settings
from backend.training.errors import ExportNoSpace

Format = Literal["adapter", "merged", "gguf-f16", "gguf-q8_0"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
MERGED: Final = "merged"
FILE_OF: Final[dict[Format, str]] = {"gguf-f16": "model-f16.gguf", "gguf-q8_0": "model-q8_0.gguf"}
# Of the size of the base model's weights, which are two bytes a parameter.
_SHARES: Final[dict[Format, float]] = {"adapter": 0.0, "merged": 1.0, "gguf-f16": 1.02, "gguf-q8_0": 0.56}
_RESERVE_BYTES: Final = 200_000_000


def in_order(formats: Sequence[Format]) -> list[Format]:
    """Each once; the adapter is always among them."""
    return [kind for kind in FORMATS if kind in formats or kind == "adapter"]


def needs_models(formats: Sequence[Format]) -> bool:
    """Whether weights must be computed, for which the adapter's own files are not enough."""
    return any(kind != "adapter" for kind in formats)


def require_space(settings: Settings, folder: Path, formats: Sequence[Format], weights: int, adapter: int) -> None:
    """Raises ExportNoSpace unless the disks can hold the files, their archive, and what is made on the way.

    `weights`, `adapter`: bytes of the base model's and of the adapter's files.
    """
    files = adapter + sum(int(_SHARES[kind] * weights) for kind in formats)
    # Files and archive; GGUF is made from a merged model, asked for or not.
    work = 2 * files + (weights if needs_models(formats) and MERGED not in formats else 0)
    needed = {folder: work + _RESERVE_BYTES}
    stored = urlsplit(settings.storage_url)
    if stored.scheme == "file":
        place = Path(unquote(stored.path))
        if place.stat().st_dev == folder.stat().st_dev:
            needed[folder] += 2 * files
        else:
            needed[place] = 2 * files + _RESERVE_BYTES
    for place, size in needed.items():
        free = shutil.disk_usage(place).free
        if free < size:
            raise ExportNoSpace(needed_gb=size / 1e9, free_gb=free / 1e9)
