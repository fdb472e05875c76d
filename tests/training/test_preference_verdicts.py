"""What rated pairs prove: margins of both models, and a verdict that chance does not make."""

from typing import Any

import pytest

from backend.training import verdicts
from backend.training.preference_verdicts import summarise


def pairs(*margins: tuple[float, float]) -> dict[str, Any]:
    """By how much each model finds the preferred answer likelier than the rejected one, as summed losses of both."""
    found = [{"base": [10.0, 10.0 + base], "tuned": [12.0, 12.0 + tuned]} for base, tuned in margins]
    return {"pairs": found, "skipped": 1}


def test_the_margin_is_what_training_added() -> None:
    found = summarise(pairs((-1.0, 2.0), (1.0, 3.0), (2.0, 1.5), (0.5, 2.5), (1.0, 2.0), (-3.0, -1.0)), beta=0.1)
    assert found.verdict == "better", found.sentence
    assert found.figures is not None
    assert found.figures["reward_margin"]["mean"] == pytest.approx(0.1 * (3 + 2 - 0.5 + 2 + 1 + 2) / 6, abs=1e-4)
    assert (found.figures["accuracy_base"], found.figures["accuracy_tuned"]) == (0.6667, 0.8333)
    assert found.figures["reward_accuracy"] == 0.8333
    assert (found.figures["pairs"], found.figures["pairs_skipped"]) == (6, 1)
    assert "83%" in found.sentence
    assert "67%" in found.sentence


@pytest.mark.parametrize(
    ("margins", "verdict", "words"),
    [
        ([(0.0, -2.0)] * 6, "worse", "prefers worse answers"),
        ([(0.0, 2.0), (0.0, -2.0)] * 4, "no_better", "as far as chance allows to tell"),
        ([(0.0, 2.0)] * 4, "unproven", "Too few pairs"),
        ([], "unproven", "No held-out example has a rejected answer"),
    ],
)
def test_the_verdict_follows_from_the_margin(margins: Any, verdict: str, words: str) -> None:
    found = summarise(pairs(*margins) if margins else None, beta=0.5)
    assert (found.verdict, words in found.sentence) == (verdict, True), found.sentence
    assert (found.figures is None) is (not margins)


def test_losses_are_told_beside_it_and_decide_nothing() -> None:
    losses = [{"index": number, "tokens": 10, "base": 10.0, "tuned": 30.0} for number in range(6)]
    found = {
        "losses": losses, "examples": 6, "examples_skipped": 0, "questions_asked": 0, "answer_seconds": 0.0,
        "eval_loss_base": 1.0, "eval_loss_tuned": 3.0, "perplexity_base": 2.7, "perplexity_tuned": 20.1,
    }  # fmt: skip
    summary = verdicts.summarise(found, [], [], summarise(pairs(*[(0.0, 2.0)] * 6), beta=0.1))
    assert summary["verdict"] == "better"
    assert "The loss of the preferred answers rose from 1.000 to 3.000." in summary["sentence"]
    assert summary["preferences"]["pairs"] == 6
    assert verdicts.summarise(found, [], [])["preferences"] is None
