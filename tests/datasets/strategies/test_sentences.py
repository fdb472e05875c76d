"""Sentence splitting on text as extraction gives it: wrapped lines, lists, tables, headings, abbreviations, French."""

import pytest

from backend.datasets.strategies.language import language_of
from backend.datasets.strategies.sentences import facts, split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It holds 1.8 litres. It weighs 3.4 kg.", ["It holds 1.8 litres.", "It weighs 3.4 kg."]),
        ("Dr. Ilse Maren leads it. Ask her.", ["Dr. Ilse Maren leads it.", "Ask her."]),
        ("Use soap, e.g. Tavola Clean. Rinse.", ["Use soap, e.g. Tavola Clean.", "Rinse."]),
        ("See Fig. 3 first. The end.", ["See Fig. 3 first.", "The end."]),
        ("The cord is 1.2 m. The plug is flat.", ["The cord is 1.2 m.", "The plug is flat."]),
        ("It runs from 2 to 4 a.m. when idle. Then not.", ["It runs from 2 to 4 a.m. when idle.", "Then not."]),
        ("J. R. Smith wrote it. He did.", ["J. R. Smith wrote it.", "He did."]),
        ("He said “Stop.” Nobody did.", ["He said “Stop.”", "Nobody did."]),
        (
            "The pump must be des-\ncaled after use\nby the owner.",
            ["The pump must be descaled after use by the owner."],
        ),
        ("the envi\ufffe\nronment is clean.", ["the environment is clean."]),
        ("La cuve contient 1,5 l. M. Durand la vide.", ["La cuve contient 1,5 l.", "M. Durand la vide."]),
        ("Voir p. ex. la notice. Fin.", ["Voir p. ex. la notice.", "Fin."]),
        ("Élan du moteur ? Oui. À suivre…", ["Élan du moteur ?", "Oui.", "À suivre…"]),
        ("", []),
    ],
)
def test_split(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_headings_bullets_and_rows_stay_apart() -> None:
    text = (
        "3. Care\nWash the jug with warm soapy water after every single use of it.\nCaution\nThe plate stays hot for\n"
        "ten minutes.\n• Empty the tank before transport.\n• Dry the tank with a cloth.\n"
        "Weight     3.4 kg\nColour     grey"
    )
    assert split_sentences(text) == [
        "Care",
        "Wash the jug with warm soapy water after every single use of it.",
        "Caution",
        "The plate stays hot for ten minutes.",
        "Empty the tank before transport.",
        "Dry the tank with a cloth.",
        "Weight     3.4 kg",
        "Colour     grey",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "Technical data",
        "It holds twelve cups of coffee.",
        "This setting doubles the contact time.",
        "However, the lamp must be switched off.",
        "Because of this, the unit must not be burnt.",
        "The values are listed in the table below.",
        "If you followed Section 3.5, skip the step.",
        "Who is allowed to open the lid?",
        "Weight        3.4 kg of net mass.",
        "Introduction ........ 12.",
        "1,150 W 230 V 50 Hz 3.4 kg.",
        "Press it.",
        "The " + "very " * 60 + "long sentence ends.",
        "Il contient deux filtres en papier.",
        "Ces filtres sont lavables à la main.",
    ],
)
def test_what_cannot_stand_alone_is_no_fact(sentence: str) -> None:
    assert facts(sentence) == []


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The filter of the machine must be replaced with care.", "en"),
        ("Le filtre de la machine doit être remplacé avec soin.", "fr"),
        ("Der Filter muss regelmäßig gewechselt werden.", "other"),
        ("", "other"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert language_of(text) == language
