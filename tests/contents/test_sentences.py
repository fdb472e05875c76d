"""Sentence boundaries of English and French prose."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.contents.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t ", []),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith met J. R. Moreau. He left.", ["Dr. Smith met J. R. Moreau.", "He left."]),
        ("It weighs 3.5 kg. Version 2.1 is out.", ["It weighs 3.5 kg.", "Version 2.1 is out."]),
        ("Use oil, e.g. Dorval 220. See fig. 3 and p. 12.", ["Use oil, e.g. Dorval 220.", "See fig. 3 and p. 12."]),
        ("It is 40 mm. The lid is red.", ["It is 40 mm.", "The lid is red."]),
        ("They sell nuts, bolts, etc. The shop is small.", ["They sell nuts, bolts, etc.", "The shop is small."]),
        ("He lives in the U.S. The U.S. Army left.", ["He lives in the U.S.", "The U.S. Army left."]),
        ("“Stop!” she said. “Why?” He left.", ["“Stop!” she said.", "“Why?”", "He left."]),
        ("Wait... what? Yes.", ["Wait... what?", "Yes."]),
        ("« Bonjour ! » Il part. M. Dupont reste.", ["« Bonjour ! »", "Il part.", "M. Dupont reste."]),
        ("Est-ce vrai ? Oui. C'est en janv. 2024.", ["Est-ce vrai ?", "Oui.", "C'est en janv. 2024."]),
        ("1. Open the lid. 2. Close it.", ["1. Open the lid.", "2. Close it."]),
        ("Parts:\n- one\n- two\n• three", ["Parts:", "- one", "- two", "• three"]),
        ("A heading\n\nA sentence that\ngoes on. End.", ["A heading", "A sentence that goes on.", "End."]),
        ("It is known.[12] Next.", ["It is known.[12]", "Next."]),
        ("Read https://a.example/b.html first. Then go.", ["Read https://a.example/b.html first.", "Then go."]),
        ("これは犬です。それは？", ["これは犬です。", "それは？"]),
        ("The answer is no. The lid shuts.", ["The answer is no.", "The lid shuts."]),
    ],
)
def test_boundaries(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@given(st.text(alphabet=st.sampled_from('ab AZ.!?\n\t-1)"«»…é•。'), max_size=200))
def test_no_character_but_white_space_is_lost(text: str) -> None:
    joined = "".join(split_sentences(text))
    assert "".join(joined.split()) == "".join(text.split())


@given(st.text(max_size=200))
def test_sentences_are_never_empty_nor_padded(text: str) -> None:
    for sentence in split_sentences(text):
        assert sentence
        assert sentence == " ".join(sentence.split())


@pytest.mark.parametrize("unit", [".", "a. ", '"', ". » ", "\n- ", "(", "?! ", "a", "\n \n"])
def test_time_grows_with_length_only(unit: str) -> None:
    started = time.process_time()
    split_sentences(unit * (400_000 // len(unit)) + "x")
    assert time.process_time() - started < 5
