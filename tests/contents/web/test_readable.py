"""Pages to text: structure, encodings, what is no text, and pages that were made to do harm."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from backend.contents.blocks import ExtractedDocument
from backend.contents.errors import DocumentRejected
from backend.contents.extraction import ExtractionLimits
from backend.contents.web.errors import UrlTypeNotSupported, WebsiteHasNoText
from backend.contents.web.fetch import Resource
from backend.contents.web.readable import PageText, read_page

Read = Callable[..., Awaitable[tuple[PageText, ExtractedDocument]]]
FRENCH = """<!DOCTYPE html><html lang="fr-FR"><head><meta charset="{charset}">
<title>Les phares de Bretagne - Un site</title><link rel="canonical" href="/phares">
<meta property="article:published_time" content="2024-03-01T10:00:00Z"></head>
<body><nav><ul><li><a href="/">Accueil</a></li><li><a href="/x">Nous écrire</a></li></ul></nav>
<article><h1>Les phares de Bretagne</h1>
<p>La Bretagne compte de nombreux phares, bâtis pour la plupart au dix-neuvième siècle, qui guident encore les marins
jusqu'au port.</p>
<h2>Histoire</h2><p>Le premier fut allumé en 1695 à Ouessant, à la demande de Vauban.</p>
<ul><li>Le Stiff<ul><li>sa vieille tour</li></ul></li><li>Le Créac'h, très <b>puissant</b></li></ul>
<ol><li>monter</li><li>regarder</li></ol>
<table><tr><th>Phare</th><th>Hauteur</th></tr><tr><td>Stiff</td><td>32 m</td></tr></table>
<h3>Code</h3><pre><code>def feu():
    return 1</code></pre>
<p>Un mot de code, <code>feu()</code>, reste dans sa phrase.<br>Puis la fin.</p></article>
<footer>Tous droits réservés 2024</footer></body></html>"""


@pytest.fixture
def read(tmp_path: Path) -> Read:
    async def run(data: bytes, content_type: str = "text/html", charset: str = "", **limits: Any) -> Any:
        page, text = tmp_path / "page", tmp_path / "text.jsonl"
        page.write_bytes(data)
        resource = Resource("https://page.test/a/b", content_type, charset, len(data))
        found = await read_page(page, resource, text, ExtractionLimits(**limits))
        return found, ExtractedDocument.from_bytes(text.read_bytes())

    return run


async def test_a_french_page_keeps_its_structure_and_its_facts(read: Read) -> None:
    found, document = await read(FRENCH.format(charset="utf-8").encode())
    assert (found.language, found.mime_type, found.pages) == ("fr", "text/html", None)
    assert found.character_count == document.character_count == sum(len(block.text) for block in document.blocks)
    assert found.meta == {
        "title": "Les phares de Bretagne",
        "language": "fr",
        "date": "2024-03-01",
        "canonical_url": "https://page.test/phares",
        "url": "https://page.test/a/b",
    }
    assert [(block.kind, block.level, block.text) for block in document.blocks] == [
        ("heading", 1, "Les phares de Bretagne"),
        (
            "paragraph",
            0,
            "La Bretagne compte de nombreux phares, bâtis pour la plupart au dix-neuvième siècle, "
            "qui guident encore les marins jusqu'au port.",
        ),
        ("heading", 2, "Histoire"),
        ("paragraph", 0, "Le premier fut allumé en 1695 à Ouessant, à la demande de Vauban."),
        ("list_item", 1, "- Le Stiff"),
        ("list_item", 2, "- sa vieille tour"),
        ("list_item", 1, "- Le Créac'h, très puissant"),
        ("list_item", 1, "1. monter"),
        ("list_item", 1, "2. regarder"),
        ("table", 0, "Phare | Hauteur\nStiff | 32 m"),
        ("heading", 3, "Code"),
        ("code", 0, "def feu():\n    return 1"),
        ("paragraph", 0, "Un mot de code, feu(), reste dans sa phrase.\nPuis la fin."),
    ]


@pytest.mark.parametrize(
    ("encoding", "charset", "declared"),
    [
        ("utf-8", "utf-8", "utf-8"),
        ("utf-8", "iso-8859-1", "windows-1252"),  # both wrong: valid UTF-8 is UTF-8
        ("cp1252", "utf-8", "utf-8"),  # both wrong: it cannot be UTF-8
        ("cp1252", "iso-8859-1", "utf-8"),
        ("cp1252", "", "iso-8859-1"),
        ("iso-8859-15", "iso-8859-15", ""),
        ("utf-16", "", "utf-8"),
        ("utf-8-sig", "ascii", ""),
        ("utf-8", "no-such-charset", "rot13"),
        ("cp1252", "base64", "zlib"),
    ],
)
async def test_encodings(read: Read, encoding: str, charset: str, declared: str) -> None:
    _, document = await read(FRENCH.format(charset=declared).encode(encoding), charset=charset)
    text = "\n".join(block.text for block in document.blocks)
    assert "dix-neuvième siècle" in text
    assert "Ouessant, à la demande" in text


async def test_a_japanese_page_in_its_old_encoding(read: Read) -> None:
    prose = "東京は日本の首都であり、世界でも最も人口の多い都市の一つです。" * 6
    _, document = await read(f"<html><body><p>{prose}</p></body></html>".encode("iso-2022-jp"), charset="iso-2022-jp")
    assert prose in document.blocks[0].text


async def test_a_page_is_what_its_bytes_are(read: Read, examples_folder: Path) -> None:
    pdf = next(examples_folder.rglob("*.pdf")).read_bytes()
    for claimed in ("application/pdf", "text/html", "application/octet-stream", ""):
        found, document = await read(pdf, content_type=claimed)
        assert (found.mime_type, found.pages) == ("application/pdf", document.pages)
        assert document.blocks
    text = "Un texte simple.\n\nAvec deux paragraphes, dont <b>celui-ci</b>."
    found, document = await read(text.encode(), content_type="text/plain")
    assert found.mime_type == "text/plain"
    assert document.blocks[-1].text.endswith("<b>celui-ci</b>.")
    for data in (b"PK\x03\x04" + bytes(200), b"\x89PNG\r\n\x1a\n" + bytes(200), b"\x7fELF" + bytes(100)):
        with pytest.raises(UrlTypeNotSupported):
            await read(data)
    found, _ = await read(b'<?xml version="1.0" encoding="utf-8"?>' + FRENCH.format(charset="utf-8").encode(), "")
    assert found.mime_type == "text/html"


SHELL = b'<html><head><script src="app.js"></script></head><body><div id="root">%s</div>%s</body></html>'


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b"", "no readable text. Send"),
        (b"   \n", "no readable text. Send"),
        (b"<html><body></body></html>", "no readable text. Send"),
        (b"<html><body><img src=x></body></html>", "no readable text. Send"),
        (SHELL % (b"", b""), "scripts are not run"),
        (SHELL % (b"Loading...", b"<noscript>You need to enable JavaScript to run this app.</noscript>"), "scripts"),
        (SHELL % (b"", b"<noscript>" + b"You need to enable JavaScript to run this app. " * 9 + b"</noscript>"), "scr"),
    ],
)
async def test_pages_without_text_say_why(read: Read, page: bytes, why: str) -> None:
    with pytest.raises(WebsiteHasNoText, match=why):
        await read(page)


PROSE = b"<p>A paragraph of ordinary prose that is long enough to be taken for the text of a page.</p>"


@pytest.mark.parametrize(
    "page",
    [
        b"<div>" * 200_000 + PROSE,
        b"<table><tr><td>" * 20_000 + PROSE,
        b"<a href=x>" * 300_000 + PROSE,
        b"<p " + b" ".join(b"a%d=1" % n for n in range(300_000)) + b">" + PROSE,
        b"<!DOCTYPE html [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]><html>&b;" + PROSE,
        b"<html>" + b"<!--" * 300_000 + PROSE,
        b"<html><body>" + b"&#0;&#x110000;\0" * 50_000 + PROSE,
        b"<ul><li>" * 100_000 + PROSE,
        b"<html>" + b"<" * 2_000_000,
    ],
    ids=["deep", "tables", "links", "attributes", "entities", "comments", "signs", "lists", "brackets"],
)
async def test_hostile_pages_end_within_their_limits(read: Read, page: bytes) -> None:
    codes = {"DOCUMENT_TOO_COMPLEX", "DOCUMENT_BROKEN", "DOCUMENT_TOO_LARGE", "WEBSITE_HAS_NO_TEXT"}
    try:
        _, document = await read(page, timeout_seconds=60.0)
        ended = document.character_count < 3_000_000
    except (DocumentRejected, WebsiteHasNoText) as error:
        ended = error.code in codes
    assert ended
