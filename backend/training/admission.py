"""Whether a local run fits on a worker: said before it is accepted, and settled by the worker that takes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self, cast

from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.errors import DomainError
from backend.providers.base_models import ModelLibrary
from backend.providers.model_facts import ModelFacts
from backend.training import data_sizes, fitting, forecasting, hardware, queries
from backend.training.errors import DoesNotFit, WorkerTooSmall
from backend.training.fitting import Alternatives, Cut
from backend.training.forecasting import Forecast, Machine, Work
from backend.training.models import FineTuning
from backend.training.sizing import Method

NO_WORKER = "No worker has reported its memory yet, so nothing can be said of whether the run fits."
# A worker does not report while it trains. One that has been silent for longer may be gone, and is not waited for.
_WAITED_FOR = timedelta(hours=12)
NO_SHAPE = "The shape of the base model is not known here, so its memory cannot be forecast."


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of a run's memory. `fits` None: nothing; `reason` says why.

    `memory` is kept with the run and shown: see `_shown`. `warnings`: what is not as it was asked for.
    """

    fits: bool | None
    memory: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    cut: Cut | None = None
    refusal: DoesNotFit | None = None

    def admitted(self) -> Self:
        """Itself. Raises DoesNotFit when no worker has room for the run, however it is cut."""
        if self.refusal is not None:
            raise self.refusal
        return self


async def foresee(
    session: AsyncSession,
    library: ModelLibrary,
    model: str,
    method: str,
    values: dict[str, Any],
    dataset_id: int | None = None,
) -> Outlook:
    """What a run with these complete hyperparameters takes on the worker that suits it best; nothing is started.

    Without a dataset, every example may be as long as max_seq_length. Nothing outside is asked.
    """
    data = None
    if dataset_id is not None:
        data = await data_sizes.measure(session, dataset_id, rated=method == "dpo")
    reports = [row.report for row in await queries.hardware_reports(session)]
    machines = [machine for report in reports if (machine := Machine.of(report)) is not None]
    facts = await _recall(library, model)
    return _judge(facts, Work.of(cast(Method, method), values, data), machines)


async def settle(session: AsyncSession, library: ModelLibrary, run: FineTuning, version: int) -> Outlook:
    """How this worker cuts the run, from its own report and the frozen examples.

    Raises DoesNotFit, or WorkerTooSmall when another worker has room: the next attempt may be there.
    """
    data = await data_sizes.measure(session, run.dataset_id, version=version, rated=run.method == "dpo")
    work = Work.of(cast(Method, run.method), run.hyperparameters, data)
    facts = await _recall(library, run.model)
    rows = await queries.hardware_reports(session)
    own = [row.report for row in rows if row.worker == hardware.worker_name()]
    mine = Machine.of(own[0]) if own else None
    here = _judge(facts, work, [mine] if mine is not None else [])
    if here.refusal is None:
        return here
    alive = [row.report for row in rows if row.reported_at > datetime.now(UTC) - _WAITED_FOR and row.report not in own]
    others = [machine for report in alive if (machine := Machine.of(report)) is not None]
    if _judge(facts, work, others).fits:
        raise WorkerTooSmall(needed_gb=here.refusal.context["needed_gb"], usable_gb=here.refusal.context["usable_gb"])
    raise here.refusal


def compare(memory: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """The memory of a finished run: what it took beside what was forecast, and the difference in percent of it."""
    measured = metrics.get("peak_memory_bytes")
    if measured is None:
        return memory
    known = memory.get("forecast")
    wrong_by = None if known is None else round(100 * (known["comparable_bytes"] - measured) / measured, 1)
    return {**memory, "measured_bytes": measured, "error_pct": wrong_by, "halvings": metrics.get("memory_halvings", 0)}


def _judge(facts: ModelFacts | None, work: Work, machines: Sequence[Machine]) -> Outlook:
    """The cut that costs the least speed, over all machines."""
    able = [machine for machine in machines if machine.has_4_bit or work.method != "qlora"]
    if not able:
        return Outlook(None, {"fits": None, "reason": NO_WORKER})
    if facts is None or forecasting.forecast(facts, work, able[0]) is None:
        return Outlook(None, {"fits": None, "reason": NO_SHAPE})
    cuts = [(machine, cut) for machine in able if (cut := fitting.cut_to_fit(facts, work, machine)) is not None]
    if cuts:
        machine, cut = max(cuts, key=lambda item: _speed(*item))
        return Outlook(True, _shown(machine, cut.work, cut.forecast, fits=True), cut.sentences(), cut)
    machine = max(able, key=fitting.usable_bytes)
    least, instead = fitting.smallest(facts, work, machine), fitting.alternatives(facts, work, machine)
    refusal = _refusal(facts, work, machine, least, instead)
    shown = _shown(machine, work, least, fits=False) | {"reason": refusal.detail, "would_fit": instead.as_dict()}
    return Outlook(False, shown, refusal=refusal)


def _speed(machine: Machine, cut: Cut) -> tuple[bool, bool, int, int]:
    """Which of two machines takes a run better."""
    return machine.device == "cuda", not cut.work.recompute, cut.work.per_device_batch_size, machine.memory_bytes


def _refusal(facts: ModelFacts, work: Work, machine: Machine, least: Forecast, instead: Alternatives) -> DoesNotFit:
    return DoesNotFit(
        model_id=facts.model_id,
        method=work.method,
        needed_gb=_gb(least.total),
        usable_gb=_gb(fitting.usable_bytes(machine)),
        device="GPU" if machine.device == "cuda" else "CPU",
        remedy=instead.sentence(),
        would_fit=instead.as_dict(),
    )


def _shown(machine: Machine, work: Work, needed: Forecast, *, fits: bool) -> dict[str, Any]:
    """Bytes throughout. `comparable_bytes`: what the trainer's own measure of its peak counts."""
    return {
        "fits": fits,
        "device": machine.device,
        "memory_bytes": machine.memory_bytes,
        "usable_bytes": fitting.usable_bytes(machine),
        "forecast": {
            "total_bytes": needed.total,
            "comparable_bytes": needed.comparable(machine.device),
            "parts": needed.parts,
            "tokens_at_once": needed.tokens,
            "per_device_batch_size": work.per_device_batch_size,
            "gradient_accumulation_steps": work.gradient_accumulation_steps,
            "recompute": work.recompute,
        },
    }


async def _recall(library: ModelLibrary, model: str) -> ModelFacts | None:
    try:
        return await library.recall(model)
    except DomainError:
        # What is wrong with the model, others say.
        return None


def _gb(size_bytes: int) -> float:
    return round(size_bytes / 1e9, 1)
