"""How often an answer that its quote does not carry is refused, and how often one that it carries is not."""

import pytest

from backend.datasets.strategies.grounding import codes_of, supported
from tests.datasets.strategies.grounding_cases import CASES, UNSEEN

# Refusing is the positive: of what is refused, this share must be rightly refused (precision), and of what must be
# refused, this share must be (recall).
LEAST_PRECISION, LEAST_RECALL = 0.95, 0.95


@pytest.mark.parametrize("language", ["en", "fr"])
@pytest.mark.parametrize("cases", [CASES, UNSEEN], ids=["tuned on", "unseen"])
def test_precision_and_recall(cases: list[tuple[str, str, str, str, bool]], language: str) -> None:
    own = [case for case in cases if case[0] == language]
    wrong = [case for case in own if supported(case[1], case[3], case[2]) != case[4]]
    refused = [case for case in own if not supported(case[1], case[3], case[2])]
    unsupported = [case for case in own if not case[4]]
    rightly = sum(not case[4] for case in refused)
    assert rightly / len(refused) >= LEAST_PRECISION, wrong
    assert rightly / len(unsupported) >= LEAST_RECALL, wrong


def test_the_table_is_large_and_balanced() -> None:
    cases = [*CASES, *UNSEEN]
    assert len(cases) >= 100
    assert 0.4 < sum(case[4] for case in cases) / len(cases) < 0.6
    assert sum(case[0] == "fr" for case in cases) >= 30


def test_headings_and_input_carry_names() -> None:
    quote = "The tank holds 1.8 litres."
    answer = "The tank of the Brewmaster K9 holds 1.8 litres."
    assert not supported("How much does the tank hold?", answer, quote)
    assert supported("How much does the tank hold?", answer, quote, context="Brewmaster K9")


def test_politeness_needs_no_evidence() -> None:
    quote = "The tank holds 1.8 litres."
    assert supported("How much fits in?", "Sure! The tank holds 1.8 litres. Let me know if I can help.", quote)
    assert not supported("How much fits in?", "Sure! It also keeps the coffee warm all day.", quote)


def test_codes() -> None:
    assert codes_of("Error E3 of part TK-9042 in 2019, see ISO and page 4.") == {"e3", "tk-9042"}
