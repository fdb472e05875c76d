"""File names made safe."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.contents.names import MAX_NAME_LENGTH, safe_filename
from tests.conftest import Tenant, stored_keys


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


@pytest.mark.parametrize("name", ["report#1", "report.txt#12", "#3", "%23", "a?b=c&d.txt"])
async def test_a_file_of_any_name_is_stored(name: str, tenant: Tenant, app: Any) -> None:
    """A folder refuses keys that end in `#` and digits, and a URL would end at a `#` or `?`."""
    project = await tenant.make_project()
    answer = await tenant.upload(project, name, b"The lamp has three feet and one shade.\n" * 20)
    assert answer.status_code == 201, answer.text
    stored = answer.json()["files"][0]["filename"]
    assert f"/{stored}" in "".join(await stored_keys(app, f"projects/{project}"))
