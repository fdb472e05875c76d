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
        ("It holds 1.8 litres. It weighs 3.4 kg.", ["It holds 1.8 litres.", "It weighs 3.4 kg."]),
        ("Dr. Ilse Maren leads it. Ask her.", ["Dr. Ilse Maren leads it.", "Ask her."]),
        ("See Fig. 3 first. The end.", ["See Fig. 3 first.", "The end."]),
        ("It runs from 2 to 4 a.m. when idle. Then not.", ["It runs from 2 to 4 a.m. when idle.", "Then not."]),
        ("Paid to Steel Corp. in Jan. 2021, i.e. early. Ok.", ["Paid to Steel Corp. in Jan. 2021, i.e. early.", "Ok."]),
        ("The report by J. R. Ito et al. is old. Read it.", ["The report by J. R. Ito et al. is old.", "Read it."]),
        ("He said “Stop.” Nobody did.", ["He said “Stop.”", "Nobody did."]),
        ("(See fig. 3.) Next, e.g., this.", ["(See fig. 3.)", "Next, e.g., this."]),
        ("La cuve contient 1,5 l. M. Durand la vide.", ["La cuve contient 1,5 l.", "M. Durand la vide."]),
        ("Voir p. ex. la notice. Fin.", ["Voir p. ex. la notice.", "Fin."]),
        ("Elle pèse env. 3,5 kg. Voir l'art. 12.", ["Elle pèse env. 3,5 kg.", "Voir l'art. 12."]),
        (
            "« Est-elle fermée ? » a demandé Mme Dubois. Oui.",
            ["« Est-elle fermée ? » a demandé Mme Dubois.", "Oui."],
        ),
        ("Élan du moteur ? Oui. À suivre…", ["Élan du moteur ?", "Oui.", "À suivre…"]),
        ("Go to www.example.org. Then to a@b.example?x=1.5!", ["Go to www.example.org.", "Then to a@b.example?x=1.5!"]),
        ("He left the U.S. Army. I did too.", ["He left the U.S. Army.", "I did too."]),
    ],
)
def test_boundaries(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_headings_items_and_rows_stay_apart_from_wrapped_lines() -> None:
    text = (
        "3. Care\nWash the jug with warm soapy water after every single use of it.\nCaution\nThe plate stays hot for\n"
        "ten minutes, and so does the jug that stands on it when it is\nFull of coffee.\n"
        "• Empty the tank before transport.\n• Dry the tank with\na cloth.\nWeight     3.4 kg\nColour | grey"
    )
    assert split_sentences(text) == [
        "3. Care",
        "Wash the jug with warm soapy water after every single use of it.",
        "Caution",
        "The plate stays hot for ten minutes, and so does the jug that stands on it when it is Full of coffee.",
        "• Empty the tank before transport.",
        "• Dry the tank with a cloth.",
        "Weight 3.4 kg",
        "Colour | grey",
    ]


def test_a_narrow_column_has_no_headings() -> None:
    assert split_sentences("He met\nJohn there\nin May.") == ["He met John there in May."]


def test_a_long_text_is_made_even_in_stretches() -> None:
    text = "".join(f"Word\t {number}\u00a0" for number in range(20_000))
    assert split_sentences(text) == [" ".join(text.split())]
    assert split_sentences(" \n" * 100_000) == []


@given(st.text(alphabet=st.sampled_from('ab AZ.!?\n\t-1)"«»…é•。'), max_size=200))
def test_no_character_but_white_space_is_lost(text: str) -> None:
    joined = "".join(split_sentences(text))
    assert "".join(joined.split()) == "".join(text.split())


@given(st.text(max_size=200))
def test_sentences_are_never_empty_nor_padded(text: str) -> None:
    for sentence in split_sentences(text):
        assert sentence
        assert sentence == " ".join(sentence.split())


@pytest.mark.parametrize(
    "unit", [".", "a. ", '"', ". » ", "\n- ", "(", "?! ", "a", "\n \n", "A\n", "a\t", "\u3002", "...\u3002"]
)
def test_time_grows_with_length_only(unit: str) -> None:
    started = time.process_time()
    split_sentences(unit * (400_000 // len(unit)) + "x")
    assert time.process_time() - started < 5
