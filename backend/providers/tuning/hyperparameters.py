"""The hyperparameters that each provider takes, under the names of the public API, and their bounds."""

from dataclasses import dataclass
from typing import Any, Final

from backend.kit.errors import DomainError


class BadHyperparameter(DomainError):
    code = "BAD_HYPERPARAMETER"
    template = "{problem} Accepted hyperparameters: {accepted}."


@dataclass(frozen=True, slots=True)
class Rule:
    """`wire` is the provider's own name. `word` is a text that it takes in place of a number."""

    wire: str
    least: float
    most: float
    whole: bool = True
    word: str | None = None
    # The number itself is not allowed, only what lies above it.
    above: bool = False


_WIDE: Final = 1e9

# openai: POST /v1/fine_tuning/jobs in its OpenAPI description (SupervisedHyperparameters and the older
# `hyperparameters`, which has the bounds); mistral: CompletionTrainingParametersIn; together:
# docs.together.ai/reference/post-fine-tunes; fireworks:
# docs.fireworks.ai/api-reference/create-supervised-fine-tuning-job; bedrock:
# docs.aws.amazon.com/bedrock/latest/userguide/custom-models-hp.html (the widest bounds of Nova and Llama).
RULES: Final[dict[str, dict[str, Rule]]] = {
    "openai": {
        "n_epochs": Rule("n_epochs", 1, 50, word="auto"),
        "batch_size": Rule("batch_size", 1, 256, word="auto"),
        "learning_rate_multiplier": Rule("learning_rate_multiplier", 0, _WIDE, whole=False, word="auto", above=True),
    },
    "mistral": {
        "n_epochs": Rule("epochs", 0, _WIDE, whole=False, above=True),
        "training_steps": Rule("training_steps", 1, _WIDE),
        "learning_rate": Rule("learning_rate", 1e-8, 1, whole=False),
        "weight_decay": Rule("weight_decay", 0, 1, whole=False),
        "warmup_fraction": Rule("warmup_fraction", 0, 1, whole=False),
        "seq_len": Rule("seq_len", 100, _WIDE),
    },
    "together": {
        "n_epochs": Rule("n_epochs", 1, 20),
        "batch_size": Rule("batch_size", 1, 1024, word="max"),
        "learning_rate": Rule("learning_rate", 0, 1, whole=False, above=True),
        "warmup_ratio": Rule("warmup_ratio", 0, 1, whole=False),
        "weight_decay": Rule("weight_decay", 0, 1, whole=False),
        "max_grad_norm": Rule("max_grad_norm", 0, _WIDE, whole=False),
        "n_evals": Rule("n_evals", 0, 100),
        "lora_r": Rule("lora_r", 1, 64),
        "lora_alpha": Rule("lora_alpha", 1, 256),
        "lora_dropout": Rule("lora_dropout", 0, 1, whole=False),
    },
    "fireworks": {
        "n_epochs": Rule("epochs", 1, 100),
        "batch_size": Rule("batchSize", 1, _WIDE),
        "learning_rate": Rule("learningRate", 0, 1, whole=False, above=True),
        "lora_rank": Rule("loraRank", 1, 64),
        "max_context_length": Rule("maxContextLength", 1, _WIDE),
        "warmup_steps": Rule("learningRateWarmupSteps", 0, _WIDE),
    },
    "bedrock": {
        "n_epochs": Rule("epochCount", 1, 10),
        "batch_size": Rule("batchSize", 1, 1024),
        "learning_rate": Rule("learningRate", 1e-7, 0.1, whole=False),
        "warmup_steps": Rule("learningRateWarmupSteps", 0, 100),
    },
}
# What callers write who know another provider.
_MEANT: Final = {
    "epochs": "n_epochs",
    "num_epochs": "n_epochs",
    "num_train_epochs": "n_epochs",
    "epochCount": "n_epochs",
    "learning_rate": "learning_rate_multiplier",
    "learning_rate_multiplier": "learning_rate",
}


def accepted(provider: str) -> tuple[str, ...]:
    """The public names; none for a provider that has no fine-tuning here."""
    return tuple(RULES.get(provider, ()))


def checked(provider: str, given: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters, without those that are null. Raises BadHyperparameter for the first wrong one."""
    rules = RULES[provider]
    for name, value in given.items():
        if name not in rules:
            meant = _MEANT.get(name)
            instead = f" Use {meant}." if meant in rules else ""
            raise _refusal(provider, f"{provider} takes no hyperparameter '{name[:100]}'.{instead}")
        if value is not None and (problem := _problem(rules[name], value)):
            raise _refusal(provider, f"{name} {problem}.")
    return {name: value for name, value in given.items() if value is not None}


def on_the_wire(provider: str, given: dict[str, Any]) -> dict[str, Any]:
    """The same under the provider's own names."""
    return {RULES[provider][name].wire: value for name, value in given.items()}


def _problem(rule: Rule, value: Any) -> str:
    if rule.word is not None and value == rule.word:
        return ""
    other = f" or '{rule.word}'" if rule.word else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number{other}"
    # Written so that a NaN is refused as well.
    if not (rule.least < value if rule.above else rule.least <= value) or not value <= rule.most:
        least = f"more than {rule.least:g}" if rule.above else f"at least {rule.least:g}"
        most = "" if rule.most == _WIDE else f" and at most {rule.most:g}"
        return f"must be {least}{most}{other}"
    if rule.whole and value != int(value):
        return f"must be a whole number{other}"
    return ""


def _refusal(provider: str, problem: str) -> BadHyperparameter:
    return BadHyperparameter(problem=problem, accepted=", ".join(RULES[provider]))
