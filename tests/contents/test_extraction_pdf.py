"""PDF to blocks."""

import io
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
)
from tests.contents import corpus
from tests.contents.conftest import Extract

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
    lines = [f"The line number {line} of this long document says something about machines." for line in range(40)]
    limits = ExtractionLimits(memory_bytes=128 * 1024 * 1024, cpu_seconds=30)
    document = await extract_bytes(corpus.pdf([lines] * 1_000), corpus.PDF, limits)
    assert document.pages == 1_000
    assert max(block.page or 0 for block in document.blocks) == 1_000
