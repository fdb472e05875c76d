"""Whether a run on preferences learned them: how much more its model prefers the better of two held-out answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from backend.training.answer_scores import paired_difference

# With fewer pairs an interval says more about luck than about the models.
FEWEST_PAIRS = 5
_ADVICE = "More ratings, more epochs or another learning rate may help."


@dataclass(frozen=True, slots=True)
class PreferenceResult:
    """`figures` as they are stored and shown; None where no pair was held out."""

    verdict: Literal["better", "no_better", "worse", "unproven"]
    sentence: str
    figures: dict[str, Any] | None


def summarise(found: Mapping[str, Any] | None, beta: float) -> PreferenceResult:
    """`found`: {"pairs": [{"base": [preferred, rejected], "tuned": [...]}], "skipped"}, summed losses of the answers.

    The reward of an answer is beta times what its log-probability gained over the base model's, and the margin is the
    reward of the preferred answer minus that of the rejected one (Rafailov et al. 2023, arXiv:2305.18290). An answer
    is preferred by a model that finds it likelier than the other, whatever their lengths are.
    """
    pairs = found["pairs"] if found is not None else []
    if not pairs:
        return PreferenceResult("unproven", _NOTHING, None)
    base, tuned = ([pair[model][1] - pair[model][0] for pair in pairs] for model in ("base", "tuned"))
    margin = paired_difference([beta * value for value in base], [beta * value for value in tuned])
    figures = {
        "pairs": len(pairs),
        "pairs_skipped": found["skipped"] if found is not None else 0,
        "accuracy_base": round(fmean(value > 0 for value in base), 4),
        "accuracy_tuned": round(fmean(value > 0 for value in tuned), 4),
        "reward_accuracy": round(fmean(after > before for before, after in zip(base, tuned, strict=True)), 4),
        "reward_margin": {
            "mean": round(margin.mean, 4),
            "low": round(margin.low, 4),
            "high": round(margin.high, 4),
        },
    }
    measured = (
        f"of {len(pairs)} held-out pairs it finds the preferred answer likelier in {figures['accuracy_tuned']:.0%}, "
        f"its base in {figures['accuracy_base']:.0%} (reward margin {margin.mean:+.3f}, 95 % interval "
        f"{margin.low:+.3f} to {margin.high:+.3f})."
    )
    if len(pairs) < FEWEST_PAIRS:
        return PreferenceResult(
            "unproven",
            f"Too few pairs were held out to prove anything ({FEWEST_PAIRS} are the least). As far as they tell, "
            f"{measured}",
            figures,
        )
    if margin.low > 0:
        return PreferenceResult("better", f"The tuned model prefers better answers than its base: {measured}", figures)
    if margin.high < 0:
        sentence = f"The tuned model prefers worse answers than its base: {measured} {_ADVICE}"
        return PreferenceResult("worse", sentence, figures)
    sentence = f"The tuned model prefers no better answers than its base, as far as chance allows to tell: {measured}"
    return PreferenceResult("no_better", f"{sentence} {_ADVICE}", figures)


_NOTHING = (
    "No held-out example has a rejected answer, so it is not proven that the tuned model prefers better answers. Rate "
    "answers to held-out questions, too."
)
