"""Quotes are found whatever a model did to their typography, and come back as the document has them."""

import pytest

from backend.datasets.strategies.quotes import find_quote

TEXT = (
    "The “water\u00a0tank” of the K9\nholds 1.8 litres — no more. The of\ufb01ce isn’t open.\n\n"
    "L’éta\u00adblissement ferme à 18 h. Der Tank fasst 5 Liter."
)


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        ('The "water tank" of the K9 holds 1.8 litres - no more.', TEXT[: TEXT.index(" The of")]),
        ("THE OFFICE ISN'T OPEN", "The of\ufb01ce isn’t open"),
        ("The office isn't open.", "The of\ufb01ce isn’t open."),
        ("L'établissement ferme à 18 h", "L’éta\u00adblissement ferme à 18 h"),
        ("... of the K9 holds 1.8 litres …", "of the K9\nholds 1.8 litres"),
        ("The tank of the K9 holds 1.8 litres", None),  # words left out
        ("8 litres — no more", None),  # cut out of a number
        ("ater tank of the K", None),  # cut out of words
        ("1.8 litres", None),  # proves nothing
        ("", None),
    ],
)
def test_quotes(quote: str, found: str | None) -> None:
    assert find_quote(quote, TEXT) == found
    assert found is None or found in TEXT


def test_scripts_without_blanks() -> None:
    text = "水箱容量为一点八升。请勿使用醋,因为它会损坏密封件。"
    assert find_quote("请勿使用醋,因为它会损坏密封件", text) == "请勿使用醋,因为它会损坏密封件"
