"""Plain text and Markdown to blocks."""

import pytest

from backend.contents.blocks import Block
from backend.contents.extraction import DocumentTooLarge, EmptyDocument, ExtractionLimits
from tests.contents import corpus
from tests.contents.conftest import Extract

FRENCH = "Le café crème coûte 3 €.\n\nL'été, la forêt brûle à l'œil nu.\n"


@pytest.mark.parametrize(
    "data",
    [
        FRENCH.encode(),
        FRENCH.encode("utf-8-sig"),
        FRENCH.encode("utf-16"),
        FRENCH.encode("utf-16-be").join([b"\xfe\xff", b""]),
        FRENCH.encode("utf-32"),
        FRENCH.encode("cp1252"),
        FRENCH.replace("\n", "\r\n").encode(),
        FRENCH.replace("\n", "\r").encode(),
        FRENCH.replace("\n", "\r\n").encode("utf-16"),
        FRENCH.encode("utf-16-le"),
        FRENCH.encode("utf-16-be"),
        FRENCH.encode("utf-32-le"),
        FRENCH.encode("utf-32-be"),
        FRENCH.encode("cp1252").replace(b"\n", b"\r\n"),
    ],
    ids="utf-8 bom utf-16 be utf-32 cp1252 crlf cr utf-16-crlf 16-le 16-be 32-le 32-be cp1252-crlf".split(),
)
async def test_encodings_and_line_ends(extract_bytes: Extract, data: bytes) -> None:
    document = await extract_bytes(data, corpus.TEXT)
    assert [block.text for block in document.blocks] == [
        "Le café crème coûte 3 €.",
        "L'été, la forêt brûle à l'œil nu.",
    ]


@pytest.mark.parametrize("text", ["Déjà vu.", "Il a été créé ici.", "Où est la clé ?", "Un œuf coûte 3 €.", "Ça va."])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16", "utf-16-le"])
async def test_short_french(extract_bytes: Extract, text: str, encoding: str) -> None:
    document = await extract_bytes(text.encode(encoding), corpus.TEXT)
    assert document.blocks[0].text == text


async def test_latin_1(extract_bytes: Extract) -> None:
    document = await extract_bytes("La forêt brûle près du château.".encode("latin-1"), corpus.TEXT)
    assert document.blocks[0].text == "La forêt brûle près du château."


async def test_form_feeds_divide_pages(extract_bytes: Extract) -> None:
    text = "The first page ends inside a\n\fsentence.\n\nIts second paragraph.\n\f\fA line on page four.\n\f"
    document = await extract_bytes(text.encode(), corpus.TEXT)
    assert document.pages == 4
    assert [(block.page, block.text) for block in document.blocks] == [
        (1, "The first page ends inside a sentence."),
        (2, "Its second paragraph."),
        (4, "A line on page four."),
    ]


async def test_control_characters_and_zeros_are_dropped(extract_bytes: Extract) -> None:
    document = await extract_bytes(b"The \x00pump\x07 has\x1b\x08 two valves.\x00\n", corpus.TEXT)
    assert document.blocks[0].text == "The pump has two valves."


async def test_a_pasted_piece_of_another_encoding(extract_bytes: Extract) -> None:
    data = ("Été après été, forêt après forêt.\n" * 20).encode() + "\nUn café.".encode("cp1252")
    document = await extract_bytes(data, corpus.TEXT)
    assert document.blocks[-1].text == "Un café."
    assert document.blocks[0].text.startswith("Été après été")


async def test_a_foreign_table_is_detected(extract_bytes: Extract) -> None:
    text = "Пресс превращает сухие опилки в круглые брикеты. Каждый брикет весит сто сорок граммов. " * 8
    document = await extract_bytes(text.encode("cp1251"), corpus.TEXT)
    assert document.blocks[0].text == text.strip()


async def test_structure_of_plain_text(extract_bytes: Extract) -> None:
    text = (
        "1 Introduction\n\n"
        "This paragraph is wrapped by hand at about fifty\ncharacters, so that its lines belong\ntogether as one.\n\n"
        "SAFETY RULES\n\n"
        "Things to bring:\n- gloves\n- glasses that\n  fit well\n* a hat\n\n"
        "2.1 Dust and fire\n\n"
        "A line that ends early.\nAnother line stands alone, and it is the longer one.\n"
    )
    document = await extract_bytes(text.encode(), corpus.TEXT)
    assert document.blocks == [
        Block("heading", "1 Introduction", 1),
        Block(
            "paragraph",
            "This paragraph is wrapped by hand at about fifty characters, so that its lines belong together as one.",
        ),
        Block("heading", "SAFETY RULES", 1),
        Block("paragraph", "Things to bring:"),
        Block("list_item", "- gloves", 1),
        Block("list_item", "- glasses that fit well", 1),
        Block("list_item", "* a hat", 1),
        Block("heading", "2.1 Dust and fire", 2),
        Block("paragraph", "A line that ends early."),
        Block("paragraph", "Another line stands alone, and it is the longer one."),
    ]


async def test_structure_of_markdown(extract_bytes: Extract) -> None:
    text = (
        "---\ntitle: hidden\n---\n# The *press*\n\nA [link](http://x.example) and `code`\nin one paragraph.<br>Next\n\n"
        "Second title\n---\n\n- one\n  - deeper\n- two **bold**\n\n3. three\n\n> quoted text\n\n"
        "| Name | Value |\n|---|---|\n| Weight | 12 kg |\n| `a` | |\n\n```python\ndef f():\n    return 1\n```\n\n"
        "<div>inside <b>html</b></div>\n\n<!-- a comment -->\n\n![the picture](x.png)\n"
    )
    document = await extract_bytes(text.encode(), corpus.MARKDOWN)
    assert document.blocks == [
        Block("heading", "The press", 1),
        Block("paragraph", "A link and code in one paragraph.\nNext"),
        Block("heading", "Second title", 2),
        Block("list_item", "- one", 1),
        Block("list_item", "- deeper", 2),
        Block("list_item", "- two bold", 1),
        Block("list_item", "3. three", 1),
        Block("paragraph", "quoted text"),
        Block("table", "Name | Value\nWeight | 12 kg\na | "[:-1]),
        Block("code", "def f():\n    return 1"),
        Block("paragraph", "inside html"),
        Block("paragraph", "the picture"),
    ]


async def test_long_markdown_is_read_in_slices_without_a_seam(extract_bytes: Extract) -> None:
    section = "## Part\n\nA paragraph of text that is read.\n\n```\n# no heading\n\nno paragraph\n```\n\n- item\n\n"
    document = await extract_bytes((section * 6_000).encode(), corpus.MARKDOWN)
    kinds = [block.kind for block in document.blocks]
    assert kinds == ["heading", "paragraph", "code", "list_item"] * 6_000


async def test_a_giant_line_comes_in_blocks_that_lose_nothing(extract_bytes: Extract) -> None:
    text = "word " * 100_000
    document = await extract_bytes(text.encode(), corpus.TEXT)
    assert max(len(block.text) for block in document.blocks) <= 32_768
    assert " ".join(block.text for block in document.blocks) == text.strip()


@pytest.mark.parametrize("data", [b"", b" \r\n\t ", b"\xef\xbb\xbf", b"\xff\xfe", "\u200b\ufeff".encode()])
@pytest.mark.parametrize("mime_type", [corpus.TEXT, corpus.MARKDOWN])
async def test_empty_files(extract_bytes: Extract, data: bytes, mime_type: str) -> None:
    with pytest.raises(EmptyDocument) as caught:
        await extract_bytes(data, mime_type)
    assert caught.value.code == "EMPTY_DOCUMENT"


async def test_too_much_text_is_refused(extract_bytes: Extract) -> None:
    with pytest.raises(DocumentTooLarge, match="more than 1,000 characters"):
        await extract_bytes(b"A sentence.\n\n" * 100, corpus.TEXT, ExtractionLimits(characters=1_000))
