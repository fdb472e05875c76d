"""Text of PDFs: pages a second, and how much of what stands in them is found, against pypdf and plain PDFium."""

import re
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.peers import extraction as readers
from benchmarks.peers.extraction_corpus import Planted, documents

ROUNDS = 3
READERS: dict[str, Callable[[Path], bytes | str]] = {
    "ours": readers.ours,
    "ours in its child": readers.ours_in_child,
    "pypdf": readers.pypdf,
    "PDFium": readers.pdfium,
}
# Manuals that Debian's packages of documentation install; those that are there are read as well.
REAL = ("debmake-doc.en.pdf", "debmake-doc.de.pdf", "bashref.pdf", "maint-guide.en.pdf", "libtasn1.pdf")
# Ours does more than PDFium alone, on top of PDFium; the figure says how much more time that takes.
OF_PDFIUM = 0.25


def run() -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "document.pdf"
        for planted in documents():
            path.write_bytes(planted.pdf)
            texts, speeds = _read(path, planted.pages)
            rows += _speed_rows(f"{planted.name} ({planted.pages} pages)", speeds)
            rows += _text_rows(planted, texts)
    found = {path.name: path for path in sorted(Path("/usr/share/doc").glob("*/*.pdf"))}
    for name in REAL:
        if name in found:
            pages = _pages(found[name])
            _, speeds = _read(found[name], pages)
            rows += _speed_rows(f"{name} ({pages} pages)", speeds)
    return rows


def _read(path: Path, pages: int) -> tuple[dict[str, str], dict[str, float]]:
    """The text by each reader, and its best pages a second, the readers taking turns."""
    texts: dict[str, str] = {}
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, read in READERS.items():
            started = _cpu_seconds()
            found = read(path)
            best[name] = max(best.get(name, 0.0), pages / (_cpu_seconds() - started))
            texts[name] = readers.text_of(found)
    return texts, best


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended: other work may run beside this."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _speed_rows(name: str, speeds: dict[str, float]) -> list[Row]:
    ours, child, unit = speeds["ours"], speeds["ours in its child"], "pages/s"
    return [
        Row(f"{name}: against pypdf", ours, speeds["pypdf"], unit, 2, "least"),
        Row(f"{name}: in a new child, against pypdf", child, speeds["pypdf"], unit, 1, "least"),
        Row(f"{name}: against plain PDFium", ours, speeds["PDFium"], unit, OF_PDFIUM, "least"),
    ]


def _text_rows(planted: Planted, texts: dict[str, str]) -> list[Row]:
    assert texts["ours"] == texts["ours in its child"], planted.name
    rows = []
    for what, measure, wanted in (
        ("sentences found", _found, planted.sentences),
        ("sentences in order", _in_order, planted.sentences),
        ("table rows on one line", _rows_found, planted.rows),
    ):
        if wanted:
            shares = {name: 100 * measure(planted, text) for name, text in texts.items()}
            rows.append(Row(f"{planted.name}: {what}", shares["ours"], 100, "%", 0.99, "least"))
            rows += [
                Row(f"{planted.name}: {what}, against {peer}", shares["ours"], shares[peer], "%", 1, "least")
                for peer in ("pypdf", "PDFium")
                # There is no ratio to a peer that finds none.
                if shares[peer]
            ]
    leaked = {name: _leaked(planted, text) for name, text in texts.items()}
    rows += [
        Row(f"{planted.name}: running lines left, against {peer}", leaked["ours"], leaked[peer], "", 0.01, "most")
        for peer in ("pypdf", "PDFium")
    ]
    return rows


def _found(planted: Planted, text: str) -> float:
    flat = " ".join(text.split())
    return sum(sentence in flat for sentence in planted.sentences) / len(planted.sentences)


def _in_order(planted: Planted, text: str) -> float:
    """The share of all neighbouring sentences that are both found, the second right after the first."""
    flat = " ".join(text.split())
    places = [flat.find(sentence) for sentence in planted.sentences]
    ends = [place + len(sentence) for place, sentence in zip(places, planted.sentences, strict=True)]
    pairs = zip(ends, places[1:], places, strict=False)
    # A heading, a page number or a table may stand between, a paragraph may not.
    near = 1_000 if planted.rows else 120
    return sum(first >= 0 and 0 <= after - end < near for end, after, first in pairs) / (len(places) - 1)


def _rows_found(planted: Planted, text: str) -> float:
    lines = {re.sub(r"[\s|]+", " ", line).strip() for line in text.splitlines()}
    return sum(" ".join(row) in lines for row in planted.rows) / len(planted.rows)


def _leaked(planted: Planted, text: str) -> int:
    """How many running headers, footers and page numbers stand in the text."""
    flat = "\n" + "\n".join(" ".join(line.split()) for line in text.splitlines()) + "\n"
    return sum(flat.count(f"\n{line}\n" if line[0] == "-" else line) for line in set(planted.running))


def _pages(path: Path) -> int:
    import pypdfium2

    document = pypdfium2.PdfDocument(path)
    try:
        return len(document)
    finally:
        document.close()


if __name__ == "__main__":
    for row in run():
        sys.stdout.write(f"{row.name}: {row.value:.1f} / {row.limit:.1f} {row.unit} = {row.ratio:.2f}\n")
