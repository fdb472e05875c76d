"""PDFs made for measuring extraction, with all that stands in them: sentences, rows of tables, running lines."""

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate, Paragraph, Spacer, Table, TableStyle
from reportlab.platypus.flowables import Flowable

ENGLISH = (
    "the pump of this station lifts water from a deep well into a round tank and every filter must be cleaned before "
    "winter because sand and leaves close the fine holes so an engineer opens two valves reads both gauges writes down "
    "pressure then starts the motor again while her colleague watches oil level temperature noise and speed"
).split()
FRENCH = (
    "la pompe de cette station élève l'eau d'un puits très profond vers un réservoir rond et chaque filtre doit être "
    "nettoyé avant l'hiver parce que le sable et les feuilles bouchent les trous où l'ingénieur contrôle la pression "
    "écrit les mesures puis redémarre le moteur pendant que sa collègue surveille la température du circuit électrique"
).split()


@dataclass(slots=True)
class Planted:
    """One PDF, and what a good reader finds in it: sentences in order, rows as lists of cells; and what it drops."""

    name: str
    pages: int
    pdf: bytes
    sentences: list[str]
    rows: list[list[str]] = field(default_factory=list)
    running: list[str] = field(default_factory=list)


def documents() -> Iterator[Planted]:
    """The same bytes on every run."""
    yield _flowing("one column", 220, columns=1)
    yield _flowing("two columns", 200, columns=2)
    yield _flowing("tables", 200, columns=1, tables=True)
    yield _drawn("two columns, line by line", 120, ENGLISH, columns=2, hyphenated=False)
    yield _drawn("French, hyphenated", 120, FRENCH, columns=1, hyphenated=True)


def _sentences(dice: random.Random, words: list[str]) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        chosen = dice.choices(words, k=dice.randint(7, 18))
        chosen.insert(dice.randrange(3, len(chosen)), f"{number}")
        yield f"{chosen[0].capitalize()} {' '.join(chosen[1:])}."


def _flowing(name: str, pages: int, *, columns: int, tables: bool = False) -> Planted:
    """Justified paragraphs under headings, with a header and a footer on each page."""
    dice = random.Random(name)
    source = _sentences(dice, ENGLISH)
    styles = getSampleStyleSheet()
    body = ParagraphStyle("body", parent=styles["BodyText"], alignment=4, fontSize=10, leading=12.5)
    planted = Planted(name, 0, b"", [])
    running: list[str] = []
    buffer = io.BytesIO()

    def furniture(canvas: Canvas, document: BaseDocTemplate) -> None:
        header, footer = "Handbook of the waterworks, edition 7", f"Sheet {document.page} of this book"
        canvas.setFont("Helvetica", 8)
        canvas.drawString(60, A4[1] - 36, header)
        canvas.drawCentredString(A4[0] / 2, 30, footer)
        running.extend((header, footer))

    width = (A4[0] - 120 - 20 * (columns - 1)) / columns
    frames = [Frame(60 + (width + 20) * at, 60, width, A4[1] - 120, 0, 0, 0, 0) for at in range(columns)]
    template = PageTemplate(frames=frames, onPage=furniture)
    document = BaseDocTemplate(buffer, pagesize=A4, invariant=1, pageTemplates=[template])
    story: list[Flowable] = []
    for chapter in range(pages * 2 // (1 + tables)):
        story.append(Paragraph(f"Chapter {chapter + 1} on {dice.choice(ENGLISH)} and water", styles["Heading2"]))
        for _ in range(3):
            sentences = [next(source) for _ in range(4 if columns == 2 else 5)]
            planted.sentences += sentences
            story.append(Paragraph(" ".join(sentences), body))
        if tables:
            rows = [_row(dice, chapter, number, body) for number in range(8)]
            planted.rows += [[cell.text if isinstance(cell, Paragraph) else cell for cell in row] for row in rows]
            grid = TableStyle([("GRID", (0, 0), (-1, -1), 0.5, "black"), ("VALIGN", (0, 0), (-1, -1), "TOP")])
            story += [Spacer(0, 6), Table(rows, colWidths=[90, 190, 60, 60], style=grid), Spacer(0, 6)]
    document.build(story)
    planted.pages, planted.pdf, planted.running = document.page, buffer.getvalue(), running
    return planted


def _row(dice: random.Random, chapter: int, number: int, body: ParagraphStyle) -> list[Paragraph | str]:
    """A key, words that wrap in every third row, and two figures."""
    key = f"Part {chapter}-{number}"
    text = " ".join(dice.choices(ENGLISH, k=14 if number % 3 == 2 else 4))
    return [key, Paragraph(text, body), f"{dice.randint(1, 900)} kg", f"{dice.randint(1, 99)}.{number} mm"]


def _drawn(name: str, pages: int, words: list[str], *, columns: int, hyphenated: bool) -> Planted:
    """Lines set one by one: over all columns line by line, or with words divided at line ends."""
    dice = random.Random(name)
    source = _sentences(dice, words)
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1)
    planted = Planted(name, pages, b"", [])
    width = (A4[0] - 120 - 24 * (columns - 1)) / columns
    for number in range(1, pages + 1):
        header, footer = "Manuel des eaux" if words is FRENCH else "Handbook of the waterworks", f"- {number} -"
        planted.running += [header, footer]
        canvas.setFont("Times-Roman", 11)
        canvas.drawString(60, A4[1] - 36, header)
        texts = []
        for _ in range(columns):
            sentences = [next(source) for _ in range(20 if columns == 2 else 36)]
            planted.sentences += sentences
            texts.append(list(_set(" ".join(sentences), width, divide=_divided if hyphenated else None)))
        for line in range(max(map(len, texts))):
            for column, text in enumerate(texts):
                if line < len(text):
                    canvas.drawString(60 + (width + 24) * column, A4[1] - 72 - 13 * line, text[line])
        canvas.drawCentredString(A4[0] / 2, 30, footer)
        canvas.showPage()
    canvas.save()
    planted.pdf = buffer.getvalue()
    return planted


def _set(text: str, width: float, divide: Callable[[str], tuple[str, str] | None] | None) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and stringWidth(f"{line} {word}", "Times-Roman", 11) > width:
            parts = divide(word) if divide else None
            if parts and stringWidth(f"{line} {parts[0]}-", "Times-Roman", 11) <= width:
                yield f"{line} {parts[0]}-"
                line = parts[1]
            else:
                yield line
                line = word
        else:
            line = f"{line} {word}" if line else word
    yield line


def _divided(word: str) -> tuple[str, str] | None:
    return (word[:4], word[4:]) if len(word) >= 8 and word.isalpha() else None
