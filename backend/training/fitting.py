"""How a run is cut to fit on a machine, with its effective batch kept, and what would fit where it does not."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from backend.providers.model_facts import ModelFacts
from backend.training.forecasting import Device, Forecast, Machine, Work, forecast
from backend.training.sizing import USABLE_SHARE, Method

# Of the machine's memory, the service's own processes and the system need some as well.
_USABLE: dict[Device, float] = {"cpu": 0.9, "cuda": USABLE_SHARE}
_SHORTEST_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Cut:
    """What is done at once: the product of batch size and accumulation is that which was asked for.

    `recompute`: activations are computed anew in the backward pass. `most_tokens`: so many in one forward pass.
    """

    work: Work
    forecast: Forecast
    asked: Work

    @property
    def is_as_asked(self) -> bool:
        return self.work == self.asked

    def as_config(self) -> dict[str, Any]:
        """What the trainer is told (backend.trainers.config.Fit)."""
        return {
            "per_device_batch_size": self.work.per_device_batch_size,
            "recompute": self.work.recompute,
            "most_tokens": self.work.most_tokens,
        }

    def sentences(self) -> list[str]:
        """What is not as it was asked for."""
        work, asked = self.work, self.asked
        said = []
        if work.per_device_batch_size != asked.per_device_batch_size:
            said.append(
                f"There is memory for per_device_batch_size {work.per_device_batch_size} of the "
                f"{asked.per_device_batch_size} asked for, so gradient_accumulation_steps is "
                f"{work.gradient_accumulation_steps}: each step still learns from {asked.examples_a_step} examples."
            )
        if work.recompute:
            said.append(
                "To save memory, activations are computed twice instead of kept: training takes a third longer."
            )
        return said


def usable_bytes(machine: Machine) -> int:
    return int(machine.memory_bytes * _USABLE[machine.device])


def cut_to_fit(facts: ModelFacts, work: Work, machine: Machine) -> Cut | None:
    """The first way that fits, of those that cost the least speed; None when none does, or the shape is unknown."""
    for candidate in _cuts(work):
        needed = forecast(facts, candidate, machine)
        if needed is not None and needed.total <= usable_bytes(machine):
            return Cut(candidate, needed, work)
    return None


def smallest(facts: ModelFacts, work: Work, machine: Machine) -> Forecast:
    """The least that the run can take. The shape must be known."""
    needs = [needed for candidate in _cuts(work) if (needed := forecast(facts, candidate, machine)) is not None]
    return min(needs, key=lambda needed: needed.total)


@dataclass(frozen=True, slots=True)
class Alternatives:
    """What would fit instead, each change alone; None where it does not help."""

    max_seq_length: int | None = None
    method: Method | None = None
    lora_r: int | None = None
    largest_parameters: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        ways = []
        if self.max_seq_length is not None:
            ways.append(f"a max_seq_length of {self.max_seq_length}")
        if self.method is not None:
            ways.append(f"the method {self.method}")
        if self.lora_r is not None:
            ways.append(f"a lora_r of {self.lora_r}")
        if self.largest_parameters is not None:
            ways.append(f"a base model of at most about {_counted(self.largest_parameters)} parameters")
        if not ways:
            return "Use a worker with more memory."
        return f"What would fit: {', or '.join(ways)}."


def alternatives(facts: ModelFacts, work: Work, machine: Machine) -> Alternatives:
    """For a run that does not fit."""

    def fits(**changes: Any) -> bool:
        return cut_to_fit(facts, replace(work, **changes), machine) is not None

    longest = min(work.max_seq_length, facts.max_position_embeddings or work.max_seq_length)
    if work.data is not None:
        longest = min(longest, work.data.longest)
    return Alternatives(
        max_seq_length=next(
            (length for length in _halves(longest, _SHORTEST_LENGTH) if fits(max_seq_length=length)), None
        ),
        method=next((method for method in _thriftier(work.method, machine) if fits(method=method)), None),
        lora_r=None
        if work.method == "full"
        else next((rank for rank in _halves(work.lora_r, 1) if fits(lora_r=rank)), None),
        largest_parameters=_largest(facts, work, machine),
    )


def _cuts(work: Work) -> Iterator[Work]:
    """As asked, then smaller batches, then with activations computed anew, then no more at once than one example."""
    product = work.examples_a_step
    sizes = [size for size in range(work.per_device_batch_size, 0, -1) if product % size == 0]
    for recompute in (False, True):
        for size in sizes:
            cut = replace(work, per_device_batch_size=size, gradient_accumulation_steps=product // size)
            yield replace(cut, recompute=recompute)
    if work.method != "dpo":
        alone = replace(work, per_device_batch_size=1, gradient_accumulation_steps=product, recompute=True)
        yield alone.limited_to(min(work.data.longest, work.max_seq_length) if work.data else _SHORTEST_LENGTH)


def _halves(value: int, least: int) -> Iterator[int]:
    """Powers of two below `value`, the largest first."""
    power = 1 << max((value - 1).bit_length() - 1, 0)
    while power >= least and power < value:
        yield power
        power //= 2


def _thriftier(method: Method, machine: Machine) -> list[Method]:
    """Methods that learn from the same data with less memory."""
    if method in ("dpo", "qlora"):
        return []
    found: list[Method] = ["lora"] if method == "full" else []
    return [*found, "qlora"] if machine.has_4_bit else found


def _largest(facts: ModelFacts, work: Work, machine: Machine) -> int | None:
    """Parameters of a base model of the same proportions that would fit: all but the process grows with it."""
    least = smallest(facts, work, machine)
    room = usable_bytes(machine) - least.process
    if facts.num_parameters is None or room <= 0:
        return None
    return math.floor(facts.num_parameters * room / max(least.total - least.process, 1))


def _counted(parameters: int) -> str:
    """1234000000 as "1.2B"."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{max(parameters // 1_000_000, 1)}M"
