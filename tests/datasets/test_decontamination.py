"""Decontamination: what gives an evaluation set away, in English and French, and what does not."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.datasets.decontamination import Contamination, ReferenceSet

REFERENCES = [
    ("What is the maximum pressure of the feed pump in normal operation?", "It is 3 bar, as the safety manual states."),
    ("Quelle est la pression maximale de la pompe en fonctionnement normal ?", "Elle est de 3 bar selon le manuel."),
    ("Who founded the glass works in the town of Osterby after the great fire?", "Anna Holm."),
    ("Define entropy.", "The share of energy in a closed system that can no longer be turned into any useful work."),
    ("Qui a fondé la verrerie de la ville d'Osterby après le grand incendie ?", "Anna Holm."),
]


@pytest.fixture(scope="module")
def references() -> ReferenceSet:
    return ReferenceSet.of(REFERENCES)


@pytest.mark.parametrize(
    ("question", "answer", "kind", "row"),
    [
        ("what is the MAXIMUM pressure of the feed pump, in normal operation", "No idea.", "same_question", 0),
        ("Quelle est la pression maximale de la pompe en fonctionnement normal?", "Je ne sais.", "same_question", 1),
        ("define entropy", "A measure of disorder.", "same_question", 3),
        ("What is the maximum presure of the feed pump in normal operation?", "I forgot.", "near_duplicate", 0),
        ("In normal operation, what is the maximum pressure of the feed pump?", "Read it up.", "near_duplicate", 0),
        ("En fonctionnement normal, quelle est la pression maximale de la pompe ?", "Voyez.", "near_duplicate", 1),
        ("What is lost?",
         "In the end it is energy in a closed system that can no longer be turned into any useful work.",
         "shared_run", 3),
        ("A test.",
         "Founded the glass works in the town of Osterby after the great fire: who did it?", "shared_run", 2),
        ("Un test.",
         "Fondé la verrerie de la ville d'Osterby après le grand incendie, anna a tout fait.", "shared_run", 4),
        ("Hm?",
         "What is the maximum? Is the maximum pressure of the feed pump. Feed pump in normal operation.",
         "contained_question", 0),
    ],
)  # fmt: skip
def test_contaminated(references: ReferenceSet, question: str, answer: str, kind: str, row: int) -> None:
    assert references.match(question, answer) == Contamination(kind, row)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the minimum pressure of the feed pump?", "It is 1 bar."),
        ("How hard may the pump that feeds the boiler press?", "Three bar at most."),  # a paraphrase is not found
        ("Jusqu'où la pompe peut-elle monter ?", "Trois bar, pas plus."),
        ("Who founded the paper mill in the village of Malmby?", "Its people did."),
        ("Define enthalpy.", "Internal energy plus the product of pressure and volume."),
        ("", ""),
        ("🎉", "🎉"),
    ],
)
def test_clean(references: ReferenceSet, question: str, answer: str) -> None:
    assert references.match(question, answer) is None


def test_a_number_or_name_of_the_question_makes_another_one() -> None:
    references = ReferenceSet.of([("How many litres of water does the tank in hall 7 of the Ferrule works hold?", "")])
    assert (
        references.match("How many litres of water does the tank in hall 7 of the Ferrule works hold now?", "")
        is not None
    )
    near = "How many litres of oil does a tank hold? The tank in hall 8 of the Ferrule works hold enough."
    assert references.match(near, "") is None


def test_a_phrase_of_many_references_is_no_contamination() -> None:
    phrase = "according to the second chapter of the printed manual of the whole plant"
    names = "pump valve tank press lamp glass river cover motor boiler filter fan".split()
    references = ReferenceSet.of([(f"The {name}, {phrase}?", f"A {name} answer, {name[::-1]}.") for name in names])
    assert references.run_words == 13
    assert references.match(f"Tell me, {phrase}, who cleans the hall at night and why?", "The guard.") is None
    few = ReferenceSet.of([(f"The {name}, {phrase}?", "Yes.") for name in names[:3]])
    assert few.match(f"Tell me, {phrase} and why?", "The guard does it, by himself.") == Contamination("shared_run", 0)


def test_runs_are_as_long_as_short_references() -> None:
    assert ReferenceSet.of([("a b c", "d")]).run_words == 8
    assert ReferenceSet.of([("one two three four five six", "a b c d")]).run_words == 10
    assert ReferenceSet.of([]).run_words == 8
    assert ReferenceSet.of([]).match("anything", "at all") is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), max_size=8))
def test_every_reference_with_words_matches_itself(rows: list[tuple[str, str]]) -> None:
    references = ReferenceSet.of(rows)
    for (question, answer), found in zip(rows, references.match_many(rows), strict=True):
        assert found == references.match(question, answer)
        if any(character.isalnum() for character in question):
            assert found is not None


def test_a_large_set_takes_seconds() -> None:
    rng = random.Random(5)
    words = [
        f"{a}{b}{c}" for a in ("pa", "lo", "mi", "tre", "sku") for b in "bdfgklmnprstvz" for c in ("ra", "lek", "ume")
    ]
    rows = [(" ".join(rng.choices(words, k=12)), " ".join(rng.choices(words, k=18))) for _ in range(12_000)]
    started = time.monotonic()
    found = ReferenceSet.of(rows[:2000]).match_many(rows[1000:])
    assert [match is not None for match in found].count(True) == 1000
    assert time.monotonic() - started < 20  # about 1.5 s on two idle cores
