"""Writes `examples/quillon-40.pdf`, the manual of an invented machine, from `examples/quillon-40.md`.

Run `python examples/make_sample.py [TARGET]`; the same text gives the same file, byte for byte. The product, its maker
and every figure are invented, so that no base model can know them before it is tuned on this document.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from reportlab.graphics.shapes import Circle, Drawing, Line, Polygon, Rect, String
from reportlab.lib.colors import HexColor, white
from reportlab.lib.enums import TA_JUSTIFY
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    CondPageBreak,
    Flowable,
    Frame,
    KeepTogether,
    ListFlowable,
    ListItem,
    NextPageTemplate,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)

SOURCE = Path(__file__).with_name("quillon-40.md")
TARGET = Path(__file__).with_name("quillon-40.pdf")

SLATE, COPPER, PALE, INK, GREY = map(HexColor, ("#27435a", "#b5622f", "#eef2f5", "#1f2429", "#6b7680"))
MARGIN = 24 * mm

BODY = ParagraphStyle(
    "body", fontName="Helvetica", fontSize=10.5, leading=15.2, textColor=INK, spaceAfter=7, alignment=TA_JUSTIFY
)
BULLET = ParagraphStyle("bullet", parent=BODY, spaceAfter=3, alignment=0)
CELL = ParagraphStyle("cell", parent=BODY, fontSize=9.5, leading=12, spaceAfter=0, alignment=0)
HEAD_CELL = ParagraphStyle("head cell", parent=CELL, fontName="Helvetica-Bold", textColor=white)
CHAPTER = ParagraphStyle(
    "chapter", fontName="Helvetica-Bold", fontSize=19, leading=24, textColor=SLATE, spaceBefore=16, spaceAfter=8
)
SECTION = ParagraphStyle(
    "section", fontName="Helvetica-Bold", fontSize=13, leading=17, textColor=COPPER, spaceBefore=9, spaceAfter=4
)


class Manual(BaseDocTemplate):
    """A cover, then pages with a running header and a page number."""

    def __init__(self, target: Path) -> None:
        super().__init__(
            str(target),
            pagesize=A4,
            invariant=1,
            pageCompression=1,
            title="Quillon 40 Briquette Press: owner's manual",
            author="Maristal Works",
            subject="A sample document about an invented product",
        )
        width, height = A4
        frame = Frame(MARGIN, 24 * mm, width - 2 * MARGIN, height - 52 * mm, 0, 0, 0, 0)
        self.addPageTemplates(
            [PageTemplate("cover", [frame], onPage=draw_cover), PageTemplate("text", [frame], onPage=draw_edges)]
        )

    def afterFlowable(self, flowable: Flowable) -> None:  # noqa: N802
        """Chapters become bookmarks."""
        if isinstance(flowable, Paragraph) and flowable.style is CHAPTER:
            key = f"chapter-{self.page}-{flowable.getPlainText()}"
            self.canv.bookmarkPage(key)
            self.canv.addOutlineEntry(flowable.getPlainText(), key, 0)


def draw_edges(canvas: Canvas, document: Manual) -> None:
    width, height = A4
    canvas.saveState()
    canvas.setFont("Helvetica", 8.5)
    canvas.setFillColor(GREY)
    canvas.drawString(MARGIN, height - 16 * mm, "Quillon 40 Briquette Press")
    canvas.drawRightString(width - MARGIN, height - 16 * mm, "Owner's manual, edition 7")
    canvas.drawString(MARGIN, 13 * mm, "Maristal Works, Fennholt")
    canvas.drawRightString(width - MARGIN, 13 * mm, f"Page {document.page}")
    canvas.setStrokeColor(COPPER)
    canvas.setLineWidth(0.8)
    canvas.line(MARGIN, height - 18.5 * mm, width - MARGIN, height - 18.5 * mm)
    canvas.restoreState()


def draw_cover(canvas: Canvas, document: Manual) -> None:
    width, height = A4
    canvas.saveState()
    canvas.setFillColor(SLATE)
    canvas.rect(0, height - 118 * mm, width, 118 * mm, stroke=0, fill=1)
    canvas.setFillColor(COPPER)
    canvas.rect(0, height - 121 * mm, width, 3 * mm, stroke=0, fill=1)
    canvas.setFillColor(white)
    canvas.setFont("Helvetica-Bold", 40)
    canvas.drawString(MARGIN, height - 62 * mm, "Quillon 40")
    canvas.setFont("Helvetica", 20)
    canvas.drawString(MARGIN, height - 75 * mm, "Briquette Press")
    canvas.setFont("Helvetica", 12)
    canvas.drawString(MARGIN, height - 98 * mm, "Owner's manual for the Quillon 40 and the Quillon 40 S")
    canvas.setFillColor(GREY)
    canvas.setFont("Helvetica", 9.5)
    canvas.drawString(MARGIN, 22 * mm, "Maristal Works, Fennholt")
    canvas.drawRightString(width - MARGIN, 22 * mm, "Edition 7")
    picture().drawOn(canvas, MARGIN, 52 * mm)
    canvas.restoreState()


def styled(shape: Any, **properties: Any) -> Any:
    """The shape with its properties set, without an outline unless one is named."""
    for name, value in ({"strokeColor": None} | properties).items():
        setattr(shape, name, value)
    return shape


def picture() -> Drawing:
    """The press from the side, its parts named."""
    drawing = Drawing(459, 250)
    shapes: list[Any] = [
        styled(Rect(40, 18, 300, 10), fillColor=GREY),
        styled(Rect(60, 28, 14, 12), fillColor=INK),
        styled(Rect(206, 28, 14, 12), fillColor=INK),
        styled(Rect(50, 40, 180, 74), rx=8, ry=8, fillColor=SLATE),
        styled(
            Polygon([84, 114, 132, 114, 168, 200, 48, 200]),
            fillColor=HexColor("#c9d5de"),
            strokeColor=SLATE,
            strokeWidth=2,
        ),
        styled(Rect(44, 200, 128, 9), rx=3, ry=3, fillColor=SLATE),
        styled(Rect(230, 58, 62, 38), fillColor=HexColor("#8d9aa5")),
        styled(Rect(244, 52, 26, 50), rx=4, ry=4, fillColor=COPPER),
        styled(Polygon([292, 66, 420, 40, 420, 34, 292, 58]), fillColor=HexColor("#aab6bf")),
        styled(Rect(168, 62, 48, 34), rx=4, ry=4, fillColor=PALE),
        styled(Circle(180, 72, 4), fillColor=white, strokeColor=GREY),
        styled(Circle(192, 72, 4), fillColor=HexColor("#3c9a5f")),
        styled(Circle(204, 72, 4), fillColor=HexColor("#c0392b")),
        styled(Rect(176, 81, 32, 10), fillColor=INK),
        *(
            styled(Rect(x, y, 22, 14), rx=4, ry=4, fillColor=HexColor("#9c7248"))
            for x, y in ((300, 66), (330, 60), (360, 54), (390, 48))
        ),
    ]
    labels = (
        ("Hopper", 168, 178, 214, 178),
        ("Control panel", 200, 97, 214, 146),
        ("Heating ring", 258, 103, 290, 124),
        ("Cooling rail", 372, 70, 388, 92),
    )
    for text, x, y, to_x, to_y in labels:
        shapes.append(Line(x, y, to_x, to_y, strokeColor=INK, strokeWidth=0.7))
        shapes.append(String(to_x + 3, to_y - 1, text, fontName="Helvetica", fontSize=9, fillColor=INK))
    for shape in shapes:
        drawing.add(shape)
    return drawing


def flowables(markdown: str) -> Iterator[Flowable]:
    """The subset of Markdown that the source uses: headings, paragraphs, lists of `-` and tables."""
    yield NextPageTemplate("text")
    yield PageBreak()
    # The title and the line below it stand on the cover.
    for block in markdown.strip().split("\n\n")[2:]:
        if block.startswith("### "):
            yield CondPageBreak(32 * mm)
            yield Paragraph(escape(block[4:]), SECTION)
        elif block.startswith("## "):
            yield CondPageBreak(60 * mm)
            yield Paragraph(escape(block[3:]), CHAPTER)
        elif block.startswith("- "):
            items: list[Any] = [ListItem(Paragraph(escape(line[2:]), BULLET)) for line in block.splitlines()]
            yield ListFlowable(items, bulletType="bullet", start="\u2022", bulletColor=COPPER, leftIndent=14)
            yield Spacer(1, 6)
        elif block.startswith("|"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
            yield KeepTogether([Spacer(1, 3), table(rows), Spacer(1, 10)])
        else:
            yield Paragraph(escape(block), BODY)


def table(rows: list[list[str]]) -> Table:
    head, _, *body = rows
    cells = [[Paragraph(escape(text), HEAD_CELL) for text in head]]
    cells += [[Paragraph(escape(text), CELL) for text in row] for row in body]
    # Columns share the width by their longest text, so that no cell needs a second line.
    longest = [max(len(row[column]) for row in (head, *body)) + 4 for column in range(len(head))]
    widths = [(A4[0] - 2 * MARGIN) * length / sum(longest) for length in longest]
    return Table(
        cells,
        colWidths=widths,
        repeatRows=1,
        style=TableStyle(
            [
                ("BACKGROUND", (0, 0), (-1, 0), SLATE),
                ("ROWBACKGROUNDS", (0, 1), (-1, -1), [white, PALE]),
                ("LINEBELOW", (0, 0), (-1, -1), 0.4, HexColor("#c9d2d9")),
                ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
                ("TOPPADDING", (0, 0), (-1, -1), 4),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 5),
            ]
        ),
    )


def main(target: Path = TARGET) -> None:
    Manual(target).build(list(flowables(SOURCE.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
