"""Which language passages and questions are in."""

import pytest

from backend.contents.languages import LANGUAGES
from backend.datasets.strategies.base import ChunkText
from backend.datasets.strategies.passage_language import language_of_passage, named, written_in
from backend.datasets.strategies.prompt_files import described


@pytest.mark.parametrize(
    ("text", "language", "is_in"),
    [
        ("How often must the filter be replaced?", "en", True),
        ("À quelle fréquence faut-il remplacer le filtre ?", "en", False),
        ("How often must the filter be replaced?", "fr", False),
        ("Que signifie l'erreur E3 ?", "fr", True),
        ("Wie oft muss der Filter gewechselt werden?", "de", True),
        ("Wie oft muss der Filter gewechselt werden?", "en", False),
        ("¿Cada cuánto hay que cambiar el filtro?", "es", True),
        ("Ilse Maren", "fr", True),  # a name belongs to no language
        ("1,8 litre", "en", True),
        ("print(sorted(items)[0])", "fr", True),
        ("maps/2024_v2: {'a': 1, 'b': [2, 3]}", "fr", True),
        ("What is it?", None, True),
    ],
)
def test_written_in(text: str, language: str | None, is_in: bool) -> None:
    assert written_in(text, language) is is_in


def test_a_short_passage_is_in_the_language_of_its_document() -> None:
    assert language_of_passage(ChunkText(text="K9: 1,8 L / 230 V", language="fr")) == "fr"
    french = "Le réservoir de la machine contient deux litres. Videz le réservoir avant le transport de la machine."
    assert language_of_passage(ChunkText(text=french, language="en")) == "fr"
    assert language_of_passage(ChunkText(text="K9")) is None


def test_languages_have_names() -> None:
    assert set(described("languages")) == LANGUAGES
    assert named("fr") == "French (français)"
    assert named(None) == "the language of the passage"
