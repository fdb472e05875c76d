"""Base models and adapters that stay loaded between questions; for lack of memory, the least recently used ones go."""

from __future__ import annotations

import itertools
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open

from backend.trainers import loading
from backend.trainers.answering import stop_tokens
from backend.trainers.decoding import context_of
from backend.trainers.errors import ADAPTER_UNUSABLE, TrainerError
from backend.trainers.loading import Target

SERVING_MEMORY_EXCEEDED = "SERVING_MEMORY_EXCEEDED"
_MB = 1024 * 1024
# Of what a machine has: a card is for the models alone, the main memory is not.
_SHARE_OF_CARD, _SHARE_OF_RAM = 0.8, 0.5
# Bytes of one weight in NF4, with its share of the constants.
_FOUR_BIT_BYTES = 0.6


class BaseKey(NamedTuple):
    """A base model as it lies in memory."""

    folder: str
    four_bit: bool


class ModelKey(NamedTuple):
    """What one question is asked: a base, and an adapter over it (empty: the base alone)."""

    base: BaseKey
    adapter: str


class NoRoom(Exception):
    """What is in use leaves too little memory; there may be enough once that has ended."""


@dataclass(eq=False)
class WarmBase:
    """A loaded base with its adapters; `names` maps an adapter's key to peft's name, the latest used one last."""

    model: Any
    tokenizer: Any
    base_bytes: int
    stop_tokens: list[int]
    context: int | None
    names: OrderedDict[str, str] = field(default_factory=OrderedDict)
    adapter_bytes: dict[str, int] = field(default_factory=dict)
    active: str | None = None
    # The layers that switch, found once for each set of adapters, and whether others than layers switch as well.
    layers: list[Any] | None = None
    has_wrappers: bool = False

    @property
    def total_bytes(self) -> int:
        return self.base_bytes + sum(self.adapter_bytes.values())


# Told what was loaded or given up: "base" or "adapter", its key, and the megabytes that are in use now.
Listener = Callable[[str, str, str, int], None]


class WarmModels:
    """Loads what is asked for and gives up what was not asked for the longest time, within a budget of bytes."""

    def __init__(self, target: Target, memory_mb: int, on_change: Listener = lambda *_: None) -> None:
        self.budget_bytes = memory_mb * _MB or default_budget(target)
        self._target = target
        self._on_change = on_change
        self._bases: OrderedDict[BaseKey, WarmBase] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def total_bytes(self) -> int:
        return sum(base.total_bytes for base in self._bases.values())

    def keys(self) -> list[ModelKey]:
        """What is loaded, the latest used last."""
        return [ModelKey(key, adapter) for key, base in self._bases.items() for adapter in ("", *base.names)]

    def get(self, key: ModelKey, adapter_folder: Path | None, in_use: Collection[ModelKey] = ()) -> WarmBase:
        """The base with the adapter loaded, for which what is not `in_use` may go.

        Raises NoRoom while only what is in use stands in the way, and TrainerError SERVING_MEMORY_EXCEEDED for what
        does not fit by itself, BASE_MODEL_UNUSABLE, ADAPTER_UNUSABLE.
        """
        base = self._bases.get(key.base) or self._load_base(key, in_use)
        self._bases.move_to_end(key.base)
        if not key.adapter:
            return base
        if key.adapter not in base.names:
            assert adapter_folder is not None, "an adapter lies in a folder"
            self._load_adapter(key, base, adapter_folder, in_use)
        base.names.move_to_end(key.adapter)
        return base

    def switch(self, base: WarmBase, adapter: str) -> None:
        """Make the adapter (or none) the one that the base computes with; takes milliseconds when it is another one."""
        if base.active == adapter or not isinstance(base.model, PeftModel):
            return
        if adapter:
            if base.active == "":
                base.model.base_model.enable_adapter_layers()
            _activate(base, base.names[adapter])
        else:
            base.model.base_model.disable_adapter_layers()
        base.active = adapter

    def _load_base(self, key: ModelKey, in_use: Collection[ModelKey]) -> WarmBase:
        folder, four_bit = Path(key.base.folder), key.base.four_bit
        loading.refuse_unsafe(folder)
        self._make_room(weights_bytes(folder, self._target, four_bit=four_bit), key, in_use)
        tokenizer = loading.load_tokenizer(folder)
        model = loading.load_base(folder, self._target, four_bit=four_bit)
        model.eval()
        base = WarmBase(model, tokenizer, bytes_of(model), stop_tokens(model, tokenizer), context_of(model))
        self._bases[key.base] = base
        self._on_change("loaded", "base", key.base.folder, self.total_bytes // _MB)
        return base

    def _load_adapter(self, key: ModelKey, base: WarmBase, folder: Path, in_use: Collection[ModelKey]) -> None:
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise TrainerError(ADAPTER_UNUSABLE, "There is no trained adapter here. Train the model first.")
        # peft keeps an adapter in 32 bits, and the file may hold it in 16.
        self._make_room(2 * weights.stat().st_size, key, in_use)
        name = f"adapter_{next(self._numbers)}"
        before = bytes_of(base.model)
        try:
            if isinstance(base.model, PeftModel):
                base.model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
            else:
                base.model = PeftModel.from_pretrained(base.model, folder, adapter_name=name, is_trainable=False)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            self._undo(key, base, name)
            if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
                raise
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            message = f"The adapter does not fit this base model ({reason}). Use the base model it was trained on."
            raise TrainerError(ADAPTER_UNUSABLE, message) from error
        base.model.eval()
        base.active = base.layers = None
        base.names[key.adapter] = name
        base.adapter_bytes[key.adapter] = bytes_of(base.model) - before
        self._on_change("loaded", "adapter", key.adapter, self.total_bytes // _MB)

    def _undo(self, key: ModelKey, base: WarmBase, name: str) -> None:
        """Takes half an adapter out again; a base that is left in pieces goes with it."""
        if not isinstance(base.model, PeftModel):
            del self._bases[key.base]
            return
        with suppress(ValueError, KeyError):
            base.model.delete_adapter(name)
        base.active = base.layers = None

    def _make_room(self, wanted_bytes: int, key: ModelKey, in_use: Collection[ModelKey]) -> None:
        """Gives up bases, then this base's adapters, until there is room. Raises NoRoom, TrainerError."""
        bases_in_use = {used.base for used in in_use}
        while self.total_bytes + wanted_bytes > self.budget_bytes:
            idle = next((other for other in self._bases if other != key.base and other not in bases_in_use), None)
            if idle is not None:
                self._drop_base(idle)
                continue
            own = self._bases.get(key.base)
            used = {item.adapter for item in in_use if item.base == key.base}
            unused = next((name for name in own.names if name not in used), None) if own is not None else None
            if own is not None and unused is not None:
                self._drop_adapter(own, unused)
                continue
            if in_use:
                raise NoRoom
            raise TrainerError(
                SERVING_MEMORY_EXCEEDED,
                f"The model needs {math.ceil((self.total_bytes + wanted_bytes) / _MB)} MB of memory, and answers may "
                f"use {self.budget_bytes // _MB} MB. Raise SERVING_MEMORY_MB, or ask a model with a smaller base.",
            )

    def _drop_base(self, key: BaseKey) -> None:
        del self._bases[key]
        if self._target.device == "cuda":
            torch.cuda.empty_cache()
        self._on_change("evicted", "base", key.folder, self.total_bytes // _MB)

    def _drop_adapter(self, base: WarmBase, adapter: str) -> None:
        # To another one first: peft warns when the active adapter is deleted.
        other = next((name for key, name in base.names.items() if key != adapter), None)
        if other is not None:
            base.model.set_adapter(other, inference_mode=True)
        base.active = base.layers = None
        base.model.delete_adapter(base.names.pop(adapter))
        del base.adapter_bytes[adapter]
        self._on_change("evicted", "adapter", adapter, self.total_bytes // _MB)


def _activate(base: WarmBase, name: str) -> None:
    """Switches as peft's `set_adapter` does, without the flags of gradients, which nobody needs here.

    Those take 15 ms for 210 layers, and more with every adapter that is loaded.
    """
    if base.layers is None:
        modules = list(base.model.modules())
        base.layers = [module for module in modules if isinstance(module, BaseTunerLayer)]
        base.has_wrappers = any(isinstance(module, AuxiliaryTrainingWrapper) for module in modules)
    if base.has_wrappers:
        base.model.set_adapter(name, inference_mode=True)
        return
    for layer in base.layers:
        layer._active_adapter = [name]
    base.model.active_adapter = base.model.base_model.active_adapter = name


def weights_bytes(folder: Path, target: Target, *, four_bit: bool) -> int:
    """About how many bytes a model will take once it is loaded, from the headers of its files."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return int(count * (_FOUR_BIT_BYTES if four_bit else target.weights_dtype.itemsize))


def bytes_of(model: Any) -> int:
    """The bytes of all weights; tied ones count once."""
    return sum(
        tensor.nbytes for tensor in {id(item): item for item in (*model.parameters(), *model.buffers())}.values()
    )


def default_budget(target: Target) -> int:
    """Bytes that models may take where no setting says it."""
    if target.device == "cuda":
        return int(torch.cuda.mem_get_info()[1] * _SHARE_OF_CARD)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _SHARE_OF_RAM)
