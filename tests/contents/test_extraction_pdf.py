"""PDF to blocks."""

import asyncio
import io
import os
import sys
from pathlib import Path

import pytest
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph, SimpleDocTemplate, Table

from backend.contents.extraction import (
    DocumentBroken,
    DocumentEncrypted,
    DocumentHasNoText,
    DocumentTooLarge,
    EmptyDocument,
    ExtractionLimits,
    extract_to_file,
    find_language,
)
from tests.contents import children, corpus
from tests.contents.conftest import Extract

LINES = [f"The line number {line} of this long document says something about machines." for line in range(40)]
SAMPLE = Path(__file__).parents[2] / "examples" / "quillon-40.pdf"


async def test_the_sample_reads_like_its_source(extract_bytes: Extract) -> None:
    document = await extract_bytes(SAMPLE.read_bytes(), corpus.PDF)
    assert document.pages == 9
    texts = [block.text for block in document.blocks]
    source = SAMPLE.with_suffix(".md").read_text(encoding="utf-8")
    paragraphs = [part for part in source.strip().split("\n\n") if part[0] not in "#|-"]
    missing = [paragraph for paragraph in paragraphs[1:] if paragraph not in texts]
    assert missing == []
    headings = [(block.level, block.text) for block in document.blocks if block.kind == "heading"]
    chapters = [text for level, text in headings if level == 3]
    assert chapters == [line[3:] for line in source.splitlines() if line.startswith("## ")]
    tables = [block.text for block in document.blocks if block.kind == "table" and block.page != 1]
    assert "Property | Quillon 40 | Quillon 40 S\nOutput in one hour | 18 kg | 26 kg\n" in tables[0]
    assert not any("edition 7" in text for text in texts[10:]), "the running header is dropped"
    assert not any(text.startswith("Page ") for text in texts), "page numbers are dropped"
    assert [block.page for block in document.blocks] == sorted(block.page or 0 for block in document.blocks)
    assert document.character_count == sum(map(len, texts))


async def test_lines_become_paragraphs(extract_bytes: Extract) -> None:
    buffer = io.BytesIO()
    style = getSampleStyleSheet()
    text = "The infrastructure of the town is maintained by a very small company of engineers. " * 6
    story = [
        Paragraph("A chapter", style["Heading1"]),
        Paragraph(text, style["BodyText"]),
        Paragraph(
            "Another paragraph stands here, and it is long enough for two lines of the page that it is on.",
            style["BodyText"],
        ),
        Table([["Name", "Value"], ["Weight", "12 kg"]]),
    ]
    SimpleDocTemplate(buffer, invariant=1).build(story)
    document = await extract_bytes(buffer.getvalue(), corpus.PDF)
    assert [block.kind for block in document.blocks] == ["heading", "paragraph", "paragraph", "table"]
    assert document.blocks[1].text == text.strip()
    assert document.blocks[3].text == "Name | Value\nWeight | 12 kg"


async def test_hyphenation_at_line_ends_is_undone(extract_bytes: Extract) -> None:
    lines = ["The harbour has a large infra-", "structure that was built by", "the UTF-", "8 company of the town."]
    document = await extract_bytes(corpus.pdf([lines]), corpus.PDF)
    assert " ".join(block.text for block in document.blocks) == (
        "The harbour has a large infrastructure that was built by the UTF-8 company of the town."
    )


async def test_a_sentence_goes_on_over_the_page(extract_bytes: Extract) -> None:
    document = await extract_bytes(corpus.pdf([["This sentence begins here and"], ["goes on over there."]]), corpus.PDF)
    assert [(block.text, block.page) for block in document.blocks] == [
        ("This sentence begins here and goes on over there.", 1)
    ]


async def test_headers_that_change_with_the_chapter_are_dropped(extract_bytes: Extract) -> None:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1)
    for page in range(1, 31):
        canvas.drawString(72, 810, f"Chapter {(page - 1) // 10 + 1}: Machines")
        canvas.drawString(500, 810, str(page + 4))
        canvas.drawString(72, 600, f"Sentence {page} is only here.")
        canvas.drawString(280, 20, f"{page} / 30")
        canvas.showPage()
    canvas.save()
    document = await extract_bytes(buffer.getvalue(), corpus.PDF)
    assert [block.text for block in document.blocks] == [f"Sentence {page} is only here." for page in range(1, 31)]


async def test_headers_of_two_halves_that_change_apart_are_dropped(extract_bytes: Extract) -> None:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1)
    for page in range(1, 13):
        canvas.drawString(72, 800, f"CHAPTER {(page - 1) // 6 + 1}. MACHINES")
        canvas.drawString(380, 800, f"SECTION {page}. OF PART {page * page}")
        for line in range(6):
            canvas.drawString(72, 700 - 14 * line, f"Row {line} of page {page}")
            canvas.drawString(380, 700 - 14 * line, f"weighs {page * line} kg")
        canvas.showPage()
    canvas.save()
    document = await extract_bytes(buffer.getvalue(), corpus.PDF)
    text = "\n".join(block.text for block in document.blocks)
    assert "MACHINES" not in text
    assert "SECTION" not in text
    assert text.count("Row ") == 72


async def test_ligatures_accents_and_invisible_marks(extract_bytes: Extract) -> None:
    text = "Une caf\u00e9ti\u00e8re \u00e9l\u00e9gante co\u00fbte cher."
    document = await extract_bytes(corpus.pdf([[text]]), corpus.PDF)
    assert document.blocks[0].text == text


async def test_a_password_to_open_is_refused(extract_bytes: Extract) -> None:
    with pytest.raises(DocumentEncrypted, match="without the password") as caught:
        await extract_bytes(corpus.pdf([["Secret"]], password="opensesame"), corpus.PDF)
    assert caught.value.code == "DOCUMENT_ENCRYPTED"


async def test_a_password_to_print_does_not_matter(extract_bytes: Extract) -> None:
    document = await extract_bytes(corpus.pdf([["Open text."]], password="owner", owner_only=True), corpus.PDF)
    assert document.blocks[0].text == "Open text."


async def test_a_scan_is_told_to_be_recognised_first(extract_bytes: Extract) -> None:
    with pytest.raises(DocumentHasNoText, match="OCR") as caught:
        await extract_bytes(corpus.scanned_pdf(3), corpus.PDF)
    assert caught.value.code == "DOCUMENT_HAS_NO_TEXT"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyDocument),
        (b"%PDF-1.7 and nothing more", DocumentBroken),
        (corpus.pdf([["Hello"]])[:200], DocumentBroken),
        (corpus.pdf([[]]), EmptyDocument),
    ],
)
async def test_files_without_a_document(extract_bytes: Extract, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        await extract_bytes(data, corpus.PDF)


async def test_too_many_pages_are_refused(extract_bytes: Extract) -> None:
    with pytest.raises(DocumentTooLarge, match="12 pages, and 10 is the most"):
        await extract_bytes(corpus.pdf([["Text"]] * 12), corpus.PDF, ExtractionLimits(pages=10))


async def test_a_thousand_pages_in_little_memory(extract_bytes: Extract) -> None:
    limits = ExtractionLimits(memory_bytes=128 * 1024 * 1024, cpu_seconds=30)
    document = await extract_bytes(corpus.pdf([LINES] * 1_000), corpus.PDF, limits)
    assert document.pages == 1_000
    assert max(block.page or 0 for block in document.blocks) == 1_000


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of Linux")
async def test_memory_does_not_grow_with_the_pages(tmp_path: Path) -> None:
    peaks = {}
    for pages in (100, 1_000):
        source = tmp_path / f"{pages}.pdf"
        source.write_bytes(corpus.pdf([LINES] * pages))
        seen = [0]
        task = asyncio.create_task(extract_to_file(source, corpus.PDF, tmp_path / f"{pages}.jsonl"))
        while not task.done():
            seen += [children.peak_memory_bytes(pid) for pid in children.parser_children(os.getpid())]
            await asyncio.sleep(0.01)
        assert (await task).pages == pages
        peaks[pages] = max(seen)
    assert peaks[100] > 10_000_000, "it was seen"
    # The file itself is read as needed; what PDFium keeps of each page are a few hundred bytes.
    assert peaks[1_000] - peaks[100] < 12_000_000, peaks


async def test_columns_set_line_by_line(extract_bytes: Extract) -> None:
    left = [f"the left column says in its line {number} that" for number in range(20)]
    right = [f"and on the right the line {number} says that" for number in range(20)]
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1)
    canvas.drawString(
        60, 740, "A sentence that stands over both of the columns, from the left to the right edge of it."
    )
    for index, (first, second) in enumerate(zip(left, right, strict=True)):
        canvas.drawString(60, 700 - 14 * index, first)
        canvas.drawString(320, 700 - 14 * index, second)
    canvas.save()
    document = await extract_bytes(buffer.getvalue(), corpus.PDF)
    text = " ".join(block.text for block in document.blocks)
    assert text.endswith(" ".join([*left, *right]))
    assert document.blocks[0].text.startswith("A sentence that stands over both")


async def test_cells_of_several_lines_stay_in_their_row(extract_bytes: Extract) -> None:
    body = getSampleStyleSheet()["BodyText"]
    long = "Carries the weight of the whole machine and is bolted to the floor of the hall."
    rows = [
        ["Part", "What it does", "Weight"],
        ["Frame", long, "310 kg"],
        ["Lever", "Moves the slide.", "4 kg"],
        ["Cover plate", long.replace("Carries", "Shares"), "12 kg"],
    ]
    cells = [[Paragraph(cell, body) if len(cell) > 40 else cell for cell in row] for row in rows]
    buffer = io.BytesIO()
    table = Table(cells, colWidths=[90, 150, 60], style=[("VALIGN", (0, 0), (-1, -1), "TOP")])
    SimpleDocTemplate(buffer, invariant=1).build([Paragraph("Text before the table.", body), table])
    document = await extract_bytes(buffer.getvalue(), corpus.PDF)
    assert document.blocks[1].kind == "table"
    assert document.blocks[1].text == "\n".join(" | ".join(row) for row in rows)


async def test_spaces_of_code_are_kept(extract_bytes: Extract) -> None:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1)
    canvas.setFont("Courier", 10)
    lines = ["def weigh(part):", "    total = 0         # in kg", "    return total"]
    for index, line in enumerate(lines):
        canvas.drawString(72, 700 - 12 * index, line)
    canvas.save()
    document = await extract_bytes(buffer.getvalue(), corpus.PDF)
    assert [(block.kind, block.text) for block in document.blocks] == [("code", "\n".join(lines))]


async def test_a_document_of_damaged_pages_is_damaged(extract_bytes: Extract) -> None:
    pages = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [7 8 9] /Count 3 >>"]
    with pytest.raises(DocumentBroken):
        await extract_bytes(corpus.raw_pdf(pages), corpus.PDF)


@pytest.mark.parametrize(
    ("sentences", "language"),
    [
        (["The pump lifts water from the well.", "Its filter is cleaned before winter."], "en"),
        (["La pompe \u00e9l\u00e8ve l'eau du puits.", "Son filtre est nettoy\u00e9 avant l'hiver."], "fr"),
        (["Die Pumpe hebt Wasser aus dem Brunnen.", "Ihr Filter wird vor dem Winter gereinigt."], "de"),
        (["12 34 56", "78 90"], None),
    ],
)
async def test_the_language_is_found(tmp_path: Path, sentences: list[str], language: str | None) -> None:
    source, stored = tmp_path / "a.pdf", tmp_path / "text.jsonl"
    source.write_bytes(corpus.pdf([sentences * 5] * 8))
    await extract_to_file(source, corpus.PDF, stored)
    assert await find_language(stored) == language
