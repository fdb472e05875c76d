"""The hyperparameters of the studio contract: their names, defaults and limits."""

from dataclasses import dataclass
from typing import Any

from backend.training.errors import BadHyperparameter


@dataclass(frozen=True, slots=True)
class Rule:
    """One hyperparameter: its default, and the range that is accepted (both ends included)."""

    default: float
    least: float
    most: float
    whole: bool = False


RULES: dict[str, Rule] = {
    "num_epochs": Rule(3, 1, 100, whole=True),
    "learning_rate": Rule(2e-4, 1e-7, 1e-1),
    "per_device_batch_size": Rule(4, 1, 512, whole=True),
    "gradient_accumulation_steps": Rule(4, 1, 1024, whole=True),
    "max_seq_length": Rule(2048, 16, 1_048_576, whole=True),
    "lora_r": Rule(16, 1, 512, whole=True),
    "lora_alpha": Rule(32, 1, 2048, whole=True),
    "lora_dropout": Rule(0.05, 0.0, 0.9),
    "warmup_ratio": Rule(0.03, 0.0, 0.9),
    "weight_decay": Rule(0.01, 0.0, 1.0),
    "seed": Rule(42, 0, 2**31 - 1, whole=True),
}
# Which weights a run delivers: those with the lowest loss on held-out examples, or the last ones, which know the
# training examples best.
KEEP = ("best", "last")
# Characters of a wrong value that are shown again.
_QUOTED = 80


def complete(given: dict[str, Any], *, max_seq_length: int | None = None) -> dict[str, Any]:
    """All hyperparameters, with defaults where none was given. Raises BadHyperparameter for a bad name or value."""
    accepted = ", ".join([*RULES, "keep"])
    unknown = sorted(set(given) - {*RULES, "keep"})
    if unknown:
        raise BadHyperparameter(problem=f"Unknown hyperparameter {_quoted(unknown[0])}.", accepted=accepted)
    values: dict[str, Any] = {name: int(rule.default) if rule.whole else rule.default for name, rule in RULES.items()}
    if max_seq_length is not None:
        values["max_seq_length"] = max_seq_length
    values["keep"] = given.get("keep", KEEP[0])
    if values["keep"] not in KEEP:
        problem = f"keep must be {' or '.join(KEEP)}, not {_quoted(values['keep'])}."
        raise BadHyperparameter(problem=problem, accepted=accepted)
    for name, rule in RULES.items():
        if name in given:
            values[name] = _checked(name, given[name], rule, accepted)
    return values


def _checked(name: str, value: Any, rule: Rule, accepted: str) -> float | int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The range first: it refuses NaN, and integers that are too large to become a float.
    if not number or not rule.least <= value <= rule.most or (rule.whole and value != int(value)):
        kind = "a whole number" if rule.whole else "a number"
        problem = f"{name} must be {kind} from {rule.least:g} to {rule.most:g}, not {_quoted(value)}."
        raise BadHyperparameter(problem=problem, accepted=accepted)
    return int(value) if rule.whole else float(value)


def _quoted(value: Any) -> str:
    """A value from the request, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."
