"""A base model and what became of it, loaded for comparison: one model with an adapter, or two whole ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend.trainers import loading
from backend.trainers.config import Variant
from backend.trainers.loading import Target


def is_whole_model(folder: Path) -> bool:
    """Whether a run's result is a model of its own (method full) instead of an adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


class ModelPair:
    """Raises TrainerErrors of `loading` when one of the two does not load."""

    def __init__(self, base_model: Path, tuned: Path, target: Target, *, four_bit: bool = False) -> None:
        self._base: Any = loading.load_base(base_model, target, four_bit=four_bit)
        self._tuned: Any = None
        if is_whole_model(tuned):
            self._tuned = loading.load_base(tuned, target)
        else:
            self._base = loading.load_adapter(self._base, tuned)

    @contextmanager
    def as_(self, variant: Variant) -> Iterator[Any]:
        """The model that computes as the base or as the tuned one within the block."""
        if variant == "tuned":
            yield self._tuned if self._tuned is not None else self._base
        elif self._tuned is not None:
            yield self._base
        else:
            with self._base.disable_adapter():
                yield self._base
