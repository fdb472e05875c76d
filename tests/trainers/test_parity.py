"""What counts as the same model, and what does not."""

from __future__ import annotations

import math

import pytest

from backend.trainers.errors import TrainerError
from backend.trainers.parity import LIMITS, Drift, Probe, Top, drift, require_same

REFERENCE: list[Top] = [[(5, -0.1), (7, -2.5)], [(6, -0.7), (8, -0.72)]]
PROBE = Probe([], "", [1, 2], [5, 6], REFERENCE)


def test_the_same_model_does_not_drift() -> None:
    found = drift([PROBE], [REFERENCE], tie=0.05)
    assert (found.places, found.agreement, found.logprob_drift, found.largest_drift) == (2, 1.0, 0.0, 0.0)
    for kind in LIMITS:
        require_same(kind, found)


def test_a_choice_that_was_as_likely_is_no_disagreement_but_another_one_is() -> None:
    tied: list[Top] = [REFERENCE[0], [(8, -0.70), (6, -0.71)]]
    assert drift([PROBE], [tied], tie=0.05).agreement == 1
    assert drift([PROBE], [tied], tie=0.001).agreement == 0.5
    other: list[Top] = [[(7, -0.3), (5, -1.6)], REFERENCE[1]]
    found = drift([PROBE], [other], tie=0.05)
    assert found.agreement == 0.5
    assert found.logprob_drift == pytest.approx(0.75)


def test_a_token_that_an_export_does_not_even_name_drifts_at_least_that_far() -> None:
    gone: list[Top] = [[(9, -0.01), (3, -8.1)], REFERENCE[1]]
    assert drift([PROBE], [gone], tie=0.05).largest_drift == pytest.approx(8.0)


def test_places_of_which_an_export_says_nothing_are_left_out_unless_they_are_most() -> None:
    assert drift([PROBE], [[REFERENCE[0], []]], tie=0.05) == Drift(1, 1.0, 0.0, 0.0)
    silent = drift([PROBE, PROBE], [[REFERENCE[0], []], [[], []]], tie=0.05)
    with pytest.raises(TrainerError):
        require_same("gguf-f16", silent)


def test_values_that_are_no_numbers_are_refused() -> None:
    broken: list[Top] = [[(5, math.nan)], REFERENCE[1]]
    found = drift([PROBE], [broken], tie=0.05)
    assert found.logprob_drift == math.inf
    with pytest.raises(TrainerError):
        require_same("merged", found)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Drift(100, 0.5, 0.0, 0.0), "50.0% of 100 places"),
        (Drift(100, 1.0, 0.5, 0.9), "0.500 on average"),
        (Drift(100, 1.0, 0.0, 0.0, prompts_equal=0.75), "25% of the prompts"),
    ],
)
def test_the_refusal_says_what_was_measured(found: Drift, words: str) -> None:
    with pytest.raises(TrainerError) as caught:
        require_same("gguf-q8_0", found)
    assert caught.value.code == "EXPORT_DRIFTED"
    assert words in str(caught.value)
    assert "gguf-q8_0" in str(caught.value)
