"""Folders that are whole or absent: written aside, sealed by a manifest of hashes, renamed; no pickle inside."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file

from backend.trainers.errors import RUN_FOLDER_BUSY, TrainerError

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"
_PARTIAL = ".partial"


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` alone: of a stopped worker's child and its successor only one may write.

    Raises TrainerError RUN_FOLDER_BUSY while another process holds it. The kernel frees the lock with its process.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = "Another process is training in this run's folder. Wait until it ends, or cancel it."
            raise TrainerError(RUN_FOLDER_BUSY, message) from error
        yield


@contextmanager
def whole_folder(target: Path, *, manifest: bool = False) -> Iterator[Path]:
    """Yield an empty folder aside; when the block ends well it replaces `target` in one rename."""
    aside = target.with_name(f".{target.name}{_PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    mend_modes(files)
    if manifest:
        hashes = {str(path.relative_to(aside)): sha256_of(path) for path in files}
        write_json(aside / MANIFEST, {"files": hashes})
    for path in files:
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    _sync(target.parent)


def newest_whole(run_dir: Path) -> Path | None:
    """The checkpoint with the highest step whose manifest verifies; newer torn ones and leftovers are deleted."""
    for leftover in run_dir.glob(f".*{_PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in sorted(run_dir.glob(f"{PREFIX}*"), key=step_of, reverse=True):
        if is_whole(folder):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
    return None


def is_whole(folder: Path) -> bool:
    """True when every file that the manifest names is there with its hash."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(sha256_of(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def keep_newest(run_dir: Path, count: int) -> None:
    """Delete all checkpoints but the `count` with the highest steps."""
    for folder in sorted(run_dir.glob(f"{PREFIX}*"), key=step_of, reverse=True)[count:]:
        shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name, -1 when there is none."""
    suffix = folder.name.removeprefix(PREFIX)
    return int(suffix) if suffix.isdigit() else -1


def mend_modes(files: list[Path]) -> None:
    """Give files the mode that the umask asks for: safetensors writes 0600 whatever it says."""
    umask = os.umask(0)
    os.umask(umask)
    for path in files:
        path.chmod(0o666 & ~umask)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old content or the new, never half."""
    aside = path.with_name(f".{path.name}{_PARTIAL}")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    _sync(aside)
    aside.rename(path)


def sha256_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def save_tree(value: object, stem: Path) -> None:
    """Save nested dicts, lists and tuples of numbers, strings and tensors as `stem`.json and `stem`.safetensors."""
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _take_apart(value, tensors, set())
    write_json(stem.with_suffix(".json"), skeleton)
    save_file(tensors, stem.with_suffix(".safetensors"))


def load_tree(stem: Path) -> Any:
    """Load what `save_tree` saved; tensors come back on the CPU."""
    skeleton = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    return _put_together(skeleton, load_file(stem.with_suffix(".safetensors")))


def _take_apart(value: object, tensors: dict[str, torch.Tensor], buffers: set[int]) -> object:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = _apart_from(buffers, value.detach())
        return {"tensor": name}
    if isinstance(value, numpy.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, dict):
        return {
            "dict": [
                [_take_apart(key, tensors, buffers), _take_apart(item, tensors, buffers)] for key, item in value.items()
            ]
        }
    if isinstance(value, tuple):
        return {"tuple": [_take_apart(item, tensors, buffers) for item in value]}
    if isinstance(value, list):
        return [_take_apart(item, tensors, buffers) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def _apart_from(buffers: set[int], value: torch.Tensor) -> torch.Tensor:
    """On the CPU, copied only where need be: safetensors refuses the buffers that optimizers share, and a copy of the
    state of all weights would fill the memory a second time. `buffers` are those that are taken already."""
    alone = value.device.type == "cpu" and value.untyped_storage().data_ptr() not in buffers
    apart = value.to("cpu", copy=not alone).contiguous()
    buffers.add(apart.untyped_storage().data_ptr())
    return apart


def _put_together(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_together(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return numpy.array(value["array"], dtype=value["dtype"])
    if "tuple" in value:
        return tuple(_put_together(item, tensors) for item in value["tuple"])
    return {_put_together(key, tensors): _put_together(item, tensors) for key, item in value["dict"]}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
