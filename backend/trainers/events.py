"""Events of a trainer: one JSON object a line, on a stream that nothing else writes to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container
from typing import Any, Literal, TextIO

Stage = Literal["loading", "baseline", "training", "evaluating", "generating", "saving"]


class Events:
    """Writes events to `wire` as JSON lines, each flushed at once.

    Numbers that JSON cannot carry (NaN, infinities) become null. `only`: the events that are written, else all.
    """

    def __init__(self, wire: TextIO, only: Container[str] | None = None) -> None:
        self._wire = wire
        self._only = only

    def emit(self, event: str, **fields: Any) -> None:
        if self._only is not None and event not in self._only:
            return
        line = json.dumps({"event": event, **_finite(fields)}, ensure_ascii=False, allow_nan=False)
        try:
            self._wire.write(line + "\n")
            self._wire.flush()
        except BrokenPipeError:
            # Nobody reads: the worker is gone, and a run without a reader must not hold the GPU.
            os._exit(141)

    def stage(self, name: Stage) -> None:
        self.emit("stage", name=name)

    def warning(self, message: str) -> None:
        self.emit("warning", message=message)

    def progress(self, step: int, total_steps: int, message: str | None = None) -> None:
        percent = int(100 * step / total_steps) if total_steps else 0
        text = message or f"Step {step}/{total_steps}"
        self.emit("progress", progress_pct=percent, message=text, step=step, total_steps=total_steps)

    def evaluation(self, step: int, eval_loss: float, perplexity: float | None) -> None:
        self.emit("eval", step=step, eval_loss=eval_loss, perplexity=perplexity)


def perplexity(loss: float) -> float | None:
    """exp(loss), or None where that overflows."""
    return math.exp(loss) if loss < 700 else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
