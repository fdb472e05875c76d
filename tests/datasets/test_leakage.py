"""The leakage measure: planted neighbours are found, and what is unlike is not."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from backend.datasets import shingles
from backend.datasets.leakage import measure
from backend.datasets.near_duplicates import normalised

_WORDS = [f"{first}{second}{third}" for first in ("pa", "lo", "mi", "tre", "sku") for second in "bdfgklmnprstvz"
          for third in ("ra", "lek", "non", "is", "ume")]  # fmt: skip


def _text(rng: random.Random, words: int = 24) -> str:
    chosen = rng.choices(_WORDS, k=words)
    return normalised(" ".join(chosen[: words // 2]), " ".join(chosen[words // 2 :]))


def test_planted_neighbours_are_counted_and_named() -> None:
    rng = random.Random(3)
    train = [(key, _text(rng)) for key in range(3000)]
    held_out = [(10_000 + key, _text(rng)) for key in range(200)]
    near = []
    for key in range(40):
        words = train[key * 7][1].split(" ")
        for place in rng.sample(range(1, len(words) - 1), 3):
            words[place] = rng.choice(_WORDS)
        near.append((20_000 + key, " ".join(words)))
    leakage = measure(train, held_out + near)
    assert leakage.held_out == 240
    assert leakage.leaked == 40
    assert leakage.share == 40 / 240
    assert len(leakage.pairs) == 20
    texts = dict(train) | dict(near)
    for held, trained, similarity in leakage.pairs:
        assert trained == (held - 20_000) * 7
        assert similarity == shingles.jaccard(*shingles.sets([texts[held], texts[trained]]))
    assert [pair[2] for pair in leakage.pairs] == sorted((pair[2] for pair in leakage.pairs), reverse=True)


def test_the_same_question_counts_whatever_its_answer() -> None:
    train = [(1, normalised("Where is the lamp made?", "In a glass works on the coast, by forty people, for long.")),
             (2, normalised("Où se trouve l'usine ?",
                            "Au bord de la mer, depuis longtemps déjà, dans un vieux port."))]  # fmt: skip
    held_out = [(3, normalised("where is the lamp made", "Osterby.")), (4, normalised("OÙ SE TROUVE L’USINE?", "Ici.")),
                (5, normalised("What colour is the cover?", "Blue."))]  # fmt: skip
    leakage = measure(train, held_out)
    assert (leakage.same_question, leakage.leaked) == (2, 0)
    assert leakage.as_json() == {
        "held_out": 3, "leaked": 0, "share": 0.0, "same_question": 2, "threshold": 0.5, "pairs": [],
    }  # fmt: skip


def test_nothing_held_out_is_no_leak() -> None:
    assert measure([(1, "a text")], []).share == 0.0
    assert measure([], [(1, "a text")]).as_json()["leaked"] == 0


def test_numbers_do_not_hide_a_leak() -> None:
    train = [(1, normalised("What is the capacity of the tank in hall 1?", "It holds 40 litres of water."))]
    held_out = [(2, normalised("What is the capacity of the tank in hall 2?", "It holds 45 litres of water."))]
    assert measure(train, held_out).leaked == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(_WORDS[:9]), min_size=1, max_size=6), st.integers(0, 30), st.integers(1, 5))
def test_a_copy_is_always_found(words: list[str], others: int, copies: int) -> None:
    text = normalised(" ".join(words), "an answer")
    rng = random.Random(others)
    train = [(key, _text(rng)) for key in range(others)] + [(99, text)]
    leakage = measure(train, [(key, text) for key in range(copies)], most_pairs=3)
    assert (leakage.leaked, leakage.same_question) == (copies, copies)
    assert leakage.pairs == [(key, 99, 1.0) for key in range(min(copies, 3))]
