"""The losses of a run on our own workers, step by step: of an attempt that was lost, only what was gone on from."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from backend.jobs.events import STREAM_LIMIT, Event, EventLog
from backend.jobs.models import Job
from backend.training.models import FineTuning

# Under which name an entry of the trainer's own history is shown, and an event's.
_NAMES = {
    "loss": "train_loss",
    "train_loss": "train_loss",
    "eval_loss": "eval_loss",
    "learning_rate": "learning_rate",
}
Point = dict[str, Any]


async def read(session: AsyncSession, events: EventLog, fine_tuning: FineTuning) -> list[Point]:
    """Each step once, in order: {step, train_loss?, eval_loss?, learning_rate?}. Step 0 is the base model's.

    Of a run under way what its last events tell, of one that is over what the trainer kept; none of hosted runs.
    """
    metrics = fine_tuning.metrics
    if "history" in metrics:
        return of_history(metrics["history"], metrics.get("eval_loss_base"))
    job = await session.get(Job, fine_tuning.job_id) if fine_tuning.job_id is not None else None
    return [] if job is None else of_events(await events.read(job.public_id, limit=STREAM_LIMIT))


def of_history(history: Iterable[Mapping[str, Any]], base_loss: float | None) -> list[Point]:
    """From what the trainer kept, which a checkpoint carries from one attempt to the next."""
    points: dict[int, Point] = {}
    if base_loss is not None:
        _add(points, {"step": 0, "eval_loss": base_loss})
    for entry in history:
        # The last entry sums the run up: its train_loss is the mean of all steps.
        if "train_runtime" not in entry:
            _add(points, entry)
    return [points[step] for step in sorted(points)]


def of_events(events: Iterable[Event]) -> list[Point]:
    """From what a job told, in that order. Steps only grow: one that is lower than the last begins another attempt."""
    points: dict[int, Point] = {}
    last = 0
    for event in events:
        if event.name not in ("log", "eval"):
            continue
        step = event.data.get("resumed_from_step", event.data.get("step", last))
        if step < last:
            points = {kept: point for kept, point in points.items() if kept <= step}
        last = step
        _add(points, event.data)
    return [points[step] for step in sorted(points)]


def _add(points: dict[int, Point], entry: Mapping[str, Any]) -> None:
    """A later word on a step replaces an earlier one."""
    found = {shown: entry[name] for name, shown in _NAMES.items() if entry.get(name) is not None}
    if "step" in entry and found:
        points.setdefault(entry["step"], {"step": entry["step"]}).update(found)
