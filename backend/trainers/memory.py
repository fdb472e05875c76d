"""Peak memory of this process, and the smaller parts with which a run goes on after it ran out of memory."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from backend.trainers import checkpoints
from backend.trainers.config import TrainConfig
from backend.trainers.errors import INVALID_CONFIG, OUT_OF_MEMORY, TrainerError, from_exception

RETRIES = 2
_FILE = "memory.json"


@dataclass(frozen=True)
class Parts:
    """How the run is cut: halved `halvings` times; `tokens` that one forward pass may have (None: not yet bounded)."""

    halvings: int = 0
    tokens: int | None = None

    def batch_size(self, asked: int, accumulation: int = 1) -> int:
        """Examples of a padded batch, of which a step of `asked` times `accumulation` examples has a whole number."""
        most = max(1, asked >> self.halvings)
        return next(size for size in range(most, 0, -1) if asked * accumulation % size == 0)

    def accumulation(self, batch_size: int, asked: int) -> int:
        """Batches an optimizer step, such that a step keeps its examples."""
        return batch_size * asked // self.batch_size(batch_size, asked)

    @property
    def recomputes(self) -> bool:
        """The second time, activations are computed again in the backward pass instead of kept."""
        return self.halvings >= RETRIES

    def halved(self, most_tokens: int) -> Parts:
        return Parts(self.halvings + 1, max(1, most_tokens // 2))


def fitted(config: TrainConfig) -> TrainConfig:
    """The config with its batches as the worker cut them: as many examples a step, fewer at once."""
    params, size = config.hyperparams, config.fit.per_device_batch_size
    if size is None:
        return config
    step = params.per_device_batch_size * params.gradient_accumulation_steps
    if step % size:
        raise TrainerError(
            INVALID_CONFIG, f"fit.per_device_batch_size {size} does not divide a step of {step} examples."
        )
    cut = replace(params, per_device_batch_size=size, gradient_accumulation_steps=step // size)
    return replace(config, hyperparams=cut)


def load_parts(run_dir: Path) -> Parts:
    """What an earlier attempt in this run folder came down to."""
    path = run_dir / _FILE
    return Parts(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else Parts()


def save_parts(run_dir: Path, parts: Parts) -> None:
    checkpoints.write_json(run_dir / _FILE, asdict(parts))


def forget_parts(run_dir: Path) -> None:
    (run_dir / _FILE).unlink(missing_ok=True)


def ran_out(error: BaseException) -> TrainerError | None:
    """The OUT_OF_MEMORY error that `error` is, or None."""
    mapped = from_exception(error)
    return mapped if mapped.code == OUT_OF_MEMORY else None


def release() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    with suppress(OSError, AttributeError):
        # glibc keeps what was freed for itself until it is asked.
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int:
    """Highest use so far: of the GPU by tensors, or of the machine's memory by this process."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage's figure begins with what the parent had when it started this process.
        return int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
