"""The hyperparameters of the studio contract: their names, defaults by method, and limits."""

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
    # So many evaluations without a new lowest loss on held-out examples end the run; 0 or null never.
    "early_stopping_patience": Rule(3, 0, 100, whole=True),
    # How firmly a run on preferences holds on to the base model.
    "dpo_beta": Rule(0.1, 0.001, 10.0),
}
# The first is the default. `keep`: the weights that a run delivers, those with the lowest loss on held-out examples, or
# the last ones, which know the training examples best. `long_examples`: what happens to those over max_seq_length.
CHOICES: dict[str, tuple[str, ...]] = {"keep": ("best", "last"), "long_examples": ("truncate", "skip")}
# Off by default.
SWITCHES = ("use_dora", "use_rslora", "use_liger", "torch_compile")
NAMES = (*RULES, *CHOICES, *SWITCHES)
# Where none is given. All weights move with less than an adapter, and preferences are lost sight of by large steps.
LEARNING_RATES = {"full": 2e-5, "dpo": 2e-5}
_OF_ADAPTERS = ("use_dora", "use_rslora")
# Characters of a wrong value that are shown again.
_QUOTED = 80


def complete(given: dict[str, Any], *, method: str = "qlora", max_seq_length: int | None = None) -> dict[str, Any]:
    """All hyperparameters, with defaults where none was given. Raises BadHyperparameter for a bad name or value."""
    if unknown := sorted(set(given) - set(NAMES)):
        raise _bad(f"Unknown hyperparameter {_quoted(unknown[0])}.")
    values: dict[str, Any] = {name: int(rule.default) if rule.whole else rule.default for name, rule in RULES.items()}
    values["learning_rate"] = learning_rate_of(method)
    if max_seq_length is not None:
        values["max_seq_length"] = max_seq_length
    for name, accepted in CHOICES.items():
        values[name] = given.get(name, accepted[0])
        if values[name] not in accepted:
            raise _bad(f"{name} must be {' or '.join(accepted)}, not {_quoted(values[name])}.")
    for name in SWITCHES:
        values[name] = given.get(name, False)
        if not isinstance(values[name], bool):
            raise _bad(f"{name} must be true or false, not {_quoted(values[name])}.")
        if values[name] and method == "full" and name in _OF_ADAPTERS:
            raise _bad(f"{name} is for adapters, and the method full trains all weights: leave it out.")
    if values["keep"] == "last":
        # Who wants the last weights wants them trained to the end, unless told otherwise.
        values["early_stopping_patience"] = 0
    for name, rule in RULES.items():
        if name == "early_stopping_patience" and name in given and given[name] is None:
            values[name] = 0
        elif name in given:
            values[name] = _checked(name, given[name], rule)
    return values


def learning_rate_of(method: str) -> float:
    """The method's default."""
    return LEARNING_RATES.get(method, RULES["learning_rate"].default)


def carried(values: dict[str, Any], before: str, method: str) -> dict[str, Any]:
    """Hyperparameters of an earlier run for one by another method, whose own defaults take the place of the earlier."""
    carried = dict(values)
    if before != method and carried.get("learning_rate") == learning_rate_of(before):
        del carried["learning_rate"]
    return carried


def _bad(problem: str) -> BadHyperparameter:
    return BadHyperparameter(problem=problem, accepted=", ".join(NAMES))


def _checked(name: str, value: Any, rule: Rule) -> float | int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The range first: it refuses NaN, and integers that are too large to become a float.
    if not number or not rule.least <= value <= rule.most or (rule.whole and value != int(value)):
        kind = "a whole number" if rule.whole else "a number"
        raise _bad(f"{name} must be {kind} from {rule.least:g} to {rule.most:g}, not {_quoted(value)}.")
    return int(value) if rule.whole else float(value)


def _quoted(value: Any) -> str:
    """A value from the request, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."
