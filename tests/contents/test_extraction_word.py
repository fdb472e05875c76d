"""DOCX to blocks."""

import io

import pytest
from docx import Document
from docx.document import Document as DocumentObject

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
        Block("list_item", "1. Step one", 1),
        Block("table", "Name | Value | Unit\nWeight | 12 | kg"),
    ]


def saved(document: DocumentObject) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


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


async def test_numbered_lists_count_on(extract_bytes: Extract) -> None:
    document = Document()
    for text in ("Open the valve", "Start the pump", "Read the gauge"):
        document.add_paragraph(text, style="List Number")
    extracted = await extract_bytes(saved(document), corpus.DOCX)
    assert [block.text for block in extracted.blocks] == ["1. Open the valve", "2. Start the pump", "3. Read the gauge"]


async def test_merged_cells_say_their_label_in_each_row(extract_bytes: Extract) -> None:
    document = Document()
    table = document.add_table(3, 3)
    for index, text in enumerate(["Place", "Year", "Sum", "North", "2023", "4", "", "2024", "5"]):
        table.cell(index // 3, index % 3).text = text
    table.cell(1, 0).merge(table.cell(2, 0)).text = "North"
    table.cell(0, 1).merge(table.cell(0, 2)).text = "Figures"
    extracted = await extract_bytes(saved(document), corpus.DOCX)
    assert extracted.blocks == [Block("table", "Place | Figures\nNorth | 2023 | 4\nNorth | 2024 | 5")]


async def test_footnotes_and_text_boxes_follow_their_paragraph(extract_bytes: Extract) -> None:
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    notes = (
        f'<w:footnotes {space}><w:footnote w:type="separator" w:id="-1"><w:p>{run("no")}</w:p></w:footnote>'
        f'<w:footnote w:id="2"><w:p>{run("Measured in May.")}</w:p></w:footnote></w:footnotes>'
    )
    box = f"<w:r><w:pict><w:txbxContent><w:p>{run('In a box.')}</w:p></w:txbxContent></w:pict></w:r>"
    body = (
        f'<w:p>{run("The depth is 9 m.")}<w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
        f"<w:p>{run('Beside the box.')}{box}</w:p>"
    )
    relations = (
        '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes" '
        'Target="footnotes.xml"/></Relationships>'
    )
    extra = {"word/_rels/document.xml.rels": relations.encode(), "word/footnotes.xml": notes.encode()}
    types = corpus.CONTENT_TYPES.replace(
        b"</Types>",
        b'<Override PartName="/word/footnotes.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        b'wordprocessingml.footnotes+xml"/></Types>',
    )
    data = corpus.package(body.encode(), extra={**extra, "[Content_Types].xml": types})
    document = await extract_bytes(data, corpus.DOCX)
    assert [block.text for block in document.blocks] == [
        "The depth is 9 m.",
        "Measured in May.",
        "Beside the box.",
        "In a box.",
    ]


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


async def test_a_document_with_macros_is_read_as_text(extract_bytes: Extract) -> None:
    types = corpus.CONTENT_TYPES.replace(
        b"openxmlformats-officedocument.wordprocessingml.document.main", b"ms-word.document.macroEnabled.main"
    )
    body = f"<w:p>{run('A sentence.')}</w:p>".encode()
    data = corpus.package(body, extra={"[Content_Types].xml": types, "word/vbaProject.bin": corpus.OLE_WORD})
    document = await extract_bytes(data, corpus.DOCX)
    assert [block.text for block in document.blocks] == ["A sentence."]


async def test_a_bomb_is_refused_by_its_declared_size(extract_bytes: Extract) -> None:
    bomb = corpus.package(b"<w:p><w:r><w:t>" + b"a" * 3_000_000 + b"</w:t></w:r></w:p>")
    with pytest.raises(DocumentTooLarge):
        await extract_bytes(bomb, corpus.DOCX, ExtractionLimits(unpacked_xml_bytes=1_000_000))


async def test_a_doctype_is_refused_even_after_a_megabyte(extract_bytes: Extract) -> None:
    prolog = b'<?xml version="1.0"?><!--' + b"x" * (1024 * 1024 - 30) + b"--><!DOCTYPE d [<!ENTITY a 'b'>]>"
    with pytest.raises(DocumentBroken, match="DOCTYPE"):
        await extract_bytes(corpus.package(b"<w:p/>", prolog=prolog), corpus.DOCX)
