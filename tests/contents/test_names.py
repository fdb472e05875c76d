"""File names made safe."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.contents.names import MAX_NAME_LENGTH, safe_filename


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("Résumé d'été 2024.PDF", "Resume_d_ete_2024.PDF"),
        ("Œuvre Straße.md", "OEuvre_Strasse.md"),
        ("archive.tar.gz", "archive.tar.gz"),
        ("a..b.txt", "a.b.txt"),
        ("报告.docx", "file.docx"),
        (".hidden", "file.hidden"),
        ("-rf.txt", "rf.txt"),
        ("con.txt", "_con.txt"),
        ("", "file"),
        ("...", "file"),
        ("/", "file"),
        ("name\0.pdf", "name.pdf"),
        ("line\r\nSet-Cookie: a.txt", "line_Set-Cookie_a.txt"),
        ("\uff0e\uff0e\uff0fx.md", "x.md"),
    ],
)
def test_examples(name: str, safe: str) -> None:
    assert safe_filename(name) == safe


def test_a_long_name_keeps_its_extension() -> None:
    safe = safe_filename("x" * 500 + ".docx")
    assert safe.endswith("x.docx")
    assert len(safe) == MAX_NAME_LENGTH


@given(st.text() | st.text(alphabet="./\\-_aé \0"))
def test_every_name_is_safe_and_stable(name: str) -> None:
    safe = safe_filename(name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", safe)
    assert ".." not in safe
    assert len(safe) <= MAX_NAME_LENGTH
    assert safe_filename(safe) == safe
