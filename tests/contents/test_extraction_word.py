"""DOCX to blocks."""

import io

import pytest
from docx import Document

from backend.contents.blocks import Block
from backend.contents.extraction import (
    DocumentBroken,
    DocumentEncrypted,
    DocumentTooLarge,
    EmptyDocument,
    ExtractionLimits,
)
from tests.contents import corpus
from tests.contents.conftest import Extract


async def test_headings_lists_and_tables(extract_bytes: Extract) -> None:
    document = Document()
    document.add_heading("The manual", 0)
    document.add_heading("Parts", 1)
    document.add_heading("Small parts", 2)
    document.add_paragraph("The press has\ttwo levers.")
    document.add_paragraph("Lever one", style="List Bullet")
    document.add_paragraph("Lever two", style="List Bullet 2")
    document.add_paragraph("Step one", style="List Number")
    table = document.add_table(2, 3)
    for index, text in enumerate(["Name", "Value", "Unit", "Weight", "12", "kg"]):
        table.cell(index // 3, index % 3).text = text
    document.add_paragraph("   ")
    buffer = io.BytesIO()
    document.save(buffer)
    extracted = await extract_bytes(buffer.getvalue(), corpus.DOCX)
    assert extracted.pages is None
    assert extracted.blocks == [
        Block("heading", "The manual", 1),
        Block("heading", "Parts", 1),
        Block("heading", "Small parts", 2),
        Block("paragraph", "The press has two levers."),
        Block("list_item", "- Lever one", 1),
        Block("list_item", "- Lever two", 2),
        Block("list_item", "- Step one", 1),
        Block("table", "Name | Value | Unit\nWeight | 12 | kg"),
    ]


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (
            (
                f"<w:p>{run('kept')}<w:ins>{run(' added')}</w:ins>"
                "<w:del><w:r><w:delText> gone</w:delText></w:r></w:del></w:p>"
            ),
            ["kept added"],
        ),
        (f"<w:sdt><w:sdtContent><w:p>{run('In a control.')}</w:p></w:sdtContent></w:sdt>", ["In a control."]),
        (f"<w:p><w:hyperlink>{run('A link')}</w:hyperlink>{run(' follows.')}</w:p>", ["A link follows."]),
        (f"<w:p><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr>{run('No tab.')}</w:p>", ["No tab."]),
        (f"<w:p>{run('a')}<w:r><w:br/></w:r>{run('b')}<w:r><w:noBreakHyphen/></w:r>{run('c')}</w:p>", ["a\nb-c"]),
        (
            (
                f"<w:tbl><w:tr><w:tc><w:p>{run('x')}</w:p><w:tbl><w:tr><w:tc><w:p>{run('in')}</w:p></w:tc></w:tr></w:tbl>"
                f"</w:tc><w:tc><w:p>{run('y')}</w:p></w:tc></w:tr></w:tbl>"
            ),
            ["x in | y"],
        ),
    ],
)
async def test_parts_that_simple_readers_lose(extract_bytes: Extract, body: str, texts: list[str]) -> None:
    document = await extract_bytes(corpus.package(body.encode()), corpus.DOCX)
    assert [block.text for block in document.blocks] == texts


async def test_headings_of_localised_styles(extract_bytes: Extract) -> None:
    document = Document()
    style = document.styles["Heading 2"]
    style.element.set("{http://schemas.openxmlformats.org/wordprocessingml/2006/main}styleId", "Titre2")
    document.add_paragraph("Sécurité", style=style)
    buffer = io.BytesIO()
    document.save(buffer)
    extracted = await extract_bytes(buffer.getvalue(), corpus.DOCX)
    assert extracted.blocks == [Block("heading", "Sécurité", 2)]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyDocument),
        (corpus.docx([]), EmptyDocument),
        (corpus.docx(["  ", ""]), EmptyDocument),
        (corpus.docx(["Text"])[:3000], DocumentBroken),
        (corpus.archive({"a.txt": b"x"}), DocumentBroken),
        (corpus.OLE_ENCRYPTED, DocumentEncrypted),
    ],
)
async def test_files_without_a_document(extract_bytes: Extract, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        await extract_bytes(data, corpus.DOCX)


async def test_a_bomb_is_refused_by_its_declared_size(extract_bytes: Extract) -> None:
    bomb = corpus.package(b"<w:p><w:r><w:t>" + b"a" * 3_000_000 + b"</w:t></w:r></w:p>")
    with pytest.raises(DocumentTooLarge):
        await extract_bytes(bomb, corpus.DOCX, ExtractionLimits(unpacked_xml_bytes=1_000_000))


async def test_a_doctype_is_refused_even_after_a_megabyte(extract_bytes: Extract) -> None:
    prolog = b'<?xml version="1.0"?><!--' + b"x" * (1024 * 1024 - 30) + b"--><!DOCTYPE d [<!ENTITY a 'b'>]>"
    with pytest.raises(DocumentBroken, match="DOCTYPE"):
        await extract_bytes(corpus.package(b"<w:p/>", prolog=prolog), corpus.DOCX)
