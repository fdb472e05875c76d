"""The memory of a run as both faces show it: what was forecast, what it took, and what would fit instead."""

from typing import Any

from pydantic import BaseModel

from backend.training.admission import Outlook


class ForecastOut(BaseModel):
    """Bytes. `parts` add up to `total_bytes`; `comparable_bytes` is what `measured_bytes` counts of them.

    How the run is cut to fit: batch size times accumulation is what was asked for.
    """

    total_bytes: int
    comparable_bytes: int
    parts: dict[str, int]
    tokens_at_once: int
    per_device_batch_size: int
    gradient_accumulation_steps: int
    recompute: bool


class WouldFitOut(BaseModel):
    """Each alone would make it fit; null where it does not help."""

    max_seq_length: int | None
    method: str | None
    lora_r: int | None
    largest_parameters: int | None


class MemoryOut(BaseModel):
    """`fits` null: not known, and `reason` says why. `error_pct`: the forecast against what was measured, in percent
    of that. `halvings`: how often the run had no room and went on with less at once."""

    fits: bool | None = None
    reason: str | None = None
    device: str | None = None
    memory_bytes: int | None = None
    usable_bytes: int | None = None
    forecast: ForecastOut | None = None
    would_fit: WouldFitOut | None = None
    measured_bytes: int | None = None
    error_pct: float | None = None
    halvings: int | None = None


class OutlookOut(MemoryOut):
    """`warnings`: what would not be as it was asked for."""

    warnings: list[str]


def memory_out(memory: dict[str, Any]) -> MemoryOut | None:
    """None for runs elsewhere, and for those of a time when nothing was forecast."""
    return MemoryOut(**memory) if memory else None


def outlook_out(outlook: Outlook) -> OutlookOut:
    return OutlookOut(**outlook.memory, warnings=outlook.warnings)
