"""Hostile documents of the kinds that have names: polyglots, macros, outside references, wrong types, loops, lies."""

import io
import warnings
import zipfile
import zlib
from collections.abc import Iterator

from tests.contents.corpus import (
    CONTENT_TYPES,
    DOCX,
    MARKDOWN,
    OLE_ENCRYPTED,
    OLE_WORD,
    PDF,
    RELS,
    TEXT,
    archive,
    docx,
    one_page,
    package,
    pdf,
    raw_pdf,
    stream,
)

PARAGRAPH = b"<w:p><w:r><w:t>Text.</w:t></w:r></w:p>"
SAY = b"BT /F1 12 Tf 72 700 Td (A sentence stands here.) Tj ET"


def crafted() -> Iterator[tuple[str, str, bytes]]:
    """(name, MIME type, bytes); the same on every run."""
    yield from _wrong_types()
    yield from _pdf_actions()
    yield from _pdf_structures()
    yield from _pdf_streams()
    yield from _docx_references()
    yield from _docx_structures()
    yield from _texts()


def _wrong_types() -> Iterator[tuple[str, str, bytes]]:
    """Each kind read as each other: what a wrong declared type would do if sniffing failed."""
    kinds = {
        PDF: pdf([["A sentence."]]),
        DOCX: docx(["A sentence."]),
        TEXT: b"A sentence.",
        MARKDOWN: b"# A heading\n\nA sentence.",
    }
    for number, (declared, other) in enumerate([(a, b) for a in kinds for b in kinds if a != b]):
        yield f"wrong-type-{number}", declared, kinds[other]
    for name, data in (("elf", b"\x7fELF" + b"\0" * 900), ("png", b"\x89PNG\r\n\x1a\n" + b"\0" * 900)):
        for declared in kinds:
            yield f"{name}-as-{declared.rpartition('/')[2][:8]}", declared, data
    yield "polyglot-pdf-zip", PDF, kinds[PDF] + kinds[DOCX]
    yield "polyglot-zip-pdf", DOCX, kinds[PDF] + kinds[DOCX]
    yield "polyglot-html-pdf", PDF, b"<script>alert(1)</script>\n" + kinds[PDF]
    yield "polyglot-late-header", PDF, b"x" * 2_000 + kinds[PDF]


def _pdf_actions() -> Iterator[tuple[str, str, bytes]]:
    """Documents that want to run, open or fetch something."""
    for name, action in (
        ("javascript", b"<< /S /JavaScript /JS (while \\(true\\) {}) >>"),
        ("launch", b"<< /S /Launch /F (/bin/sh) >>"),
        ("address", b"<< /S /URI /URI (http://127.0.0.1:9/) >>"),
        ("remote", b"<< /S /GoToR /F (\\\\\\\\server\\\\share) /D [0 /Fit] >>"),
        ("submit", b"<< /S /SubmitForm /F (http://127.0.0.1:9/) >>"),
    ):
        data = one_page(stream(SAY)).replace(b"/Type /Catalog", b"/Type /Catalog /OpenAction " + action)
        yield f"action-{name}", PDF, data
    outside = stream(b"", b"/F (/etc/passwd) /FFilter /FlateDecode")
    yield "stream-in-another-file", PDF, one_page(outside)
    for number, text in enumerate(("opensesame", "", "\u00e9" * 40)):
        yield f"password-{number}", PDF, pdf([["Secret"]], password=text or "owner", owner_only=not text)


def _pdf_structures() -> Iterator[tuple[str, str, bytes]]:
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>"
    for depth in (100, 5_000):
        nodes = [
            b"<< /Type /Pages /Kids [%d 0 R] /Count 1 /Parent %d 0 R >>" % (number + 1, max(1, number - 1))
            for number in range(2, depth)
        ]
        yield f"deep-page-tree-{depth}", PDF, raw_pdf([b"<< /Type /Catalog /Pages 2 0 R >>", *nodes, page])
    pages = b"<< /Type /Pages /Kids [3 0 R 3 0 R 2 0 R] /Count 99 >>"
    yield "page-tree-of-itself", PDF, raw_pdf([b"<< /Type /Catalog /Pages 2 0 R >>", pages, page])
    yield "catalogue-is-a-page", PDF, raw_pdf([b"<< /Type /Catalog /Pages 1 0 R /Kids [1 0 R] /Count 3 >>"])
    yield "kids-are-numbers", PDF, raw_pdf([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Kids [1 2 3] /Count 3 >>"])
    yield "no-root", PDF, raw_pdf([page], trailer=b"")
    yield "xref-negative", PDF, raw_pdf([page], xref=b"xref\n-5 3\n0000000000 65535 f \n")
    yield "xref-past-the-end", PDF, one_page(stream(SAY)).replace(b"startxref\n", b"startxref\n99999999")
    yield "no-xref", PDF, one_page(stream(SAY)).partition(b"xref")[0]
    for name, box in (
        ("huge", b"[0 0 1e30 1e30]"),
        ("negative", b"[0 0 -612 -792]"),
        ("empty", b"[0 0 0 0]"),
        ("swapped", b"[612 792 0 0]"),
        ("words", b"[/a /b /c /d]"),
        ("short", b"[0 0]"),
        ("rotated", b"[0 0 612 792] /Rotate 123456789"),
        ("scaled", b"[0 0 612 792] /UserUnit 1e30"),
    ):
        yield f"page-{name}", PDF, one_page(stream(SAY)).replace(b"[0 0 612 792]", box)
    wide = stream(b"\0" * 100, b"/Type /XRef /Size 9 /W [2000000000 2000000000 2000000000] /Root 1 0 R")
    yield "xref-stream-wide", PDF, b"%PDF-1.5\n1 0 obj\n" + wide + b"\nendobj\nstartxref\n9\n%%EOF"
    index = stream(b"\0" * 100, b"/Type /XRef /Size 9 /W [1 2 1] /Index [0 2147483647] /Root 1 0 R")
    yield "xref-stream-index", PDF, b"%PDF-1.5\n1 0 obj\n" + index + b"\nendobj\nstartxref\n9\n%%EOF"
    yield "length-of-itself", PDF, one_page(b"<< /Length 4 0 R >>\nstream\n" + SAY + b"\nendstream")
    yield "deep-strings", PDF, one_page(stream(b"BT /F1 12 Tf " + b"(" * 200_000 + b") Tj ET"))
    yield "thousand-objects-of-nothing", PDF, raw_pdf([b"null"] * 20_000)


def _pdf_streams() -> Iterator[tuple[str, str, bytes]]:
    flate = b"/Filter /FlateDecode "
    row = zlib.compress(b"\0" * 10_000)
    for name, columns in (("columns", b"/Columns 2147483647"), ("colours", b"/Colors 2147483647 /Columns 9")):
        parms = b"/DecodeParms << /Predictor 15 " + columns + b" >>"
        yield f"predictor-{name}", PDF, one_page(stream(row, flate + parms))
    filters = b"/Filter [" + b"/ASCIIHexDecode " * 5_000 + b"]"
    yield "thousands-of-filters", PDF, one_page(stream(b"41" * 99, filters))
    yield "ascii85-noise", PDF, one_page(stream(b"z" * 3_000_000, b"/Filter /ASCII85Decode"))
    for name in (b"JBIG2Decode", b"JPXDecode", b"DCTDecode"):
        image = stream(
            b"\xff\x4f\xff\x51" + b"\xff" * 5_000,
            b"/Type /XObject /Subtype /Image /Width 65000 /Height 65000 /BitsPerComponent 8 /ColorSpace /DeviceRGB "
            b"/Filter /" + name,
        )
        data = one_page(stream(b"/I Do " + SAY), [image], b"/XObject << /I 6 0 R >>")
        yield f"picture-{name.decode().lower()}", PDF, data
    codes = b"begincmap 1 beginbfrange <0000> <ffffffff> <0041> endbfrange endcmap"
    many = b"begincmap " + b"100 beginbfchar " + b"<41> <0042> " * 300_000 + b"endbfchar endcmap"
    for name, cmap in (("range", codes), ("long", many)):
        font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 6 0 R >>"
        yield (
            f"cmap-{name}",
            PDF,
            one_page(stream(SAY), [stream(cmap)]).replace(
                b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>", font
            ),
        )
    glyph = stream(b"1000 0 d0 BT /F1 1 Tf (a) Tj ET")
    type3 = (
        b"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 9 9] /FontMatrix [1 0 0 1 0 0] /CharProcs << /a 6 0 R >> "
        b"/Encoding << /Differences [97 /a] >> /FirstChar 97 /LastChar 97 /Widths [9] /Resources << /Font << /F1 5 0 R "
        b">> >> >>"
    )
    yield (
        "font-of-itself",
        PDF,
        one_page(stream(b"BT /F1 9 Tf (aaa) Tj ET"), [glyph]).replace(
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>", type3
        ),
    )
    font_file = b"<< /Type /Font /Subtype /TrueType /BaseFont /X /FontDescriptor 6 0 R >>"
    described = [
        b"<< /Type /FontDescriptor /FontName /X /Flags 4 /FontFile2 7 0 R >>",
        stream(b"\0\1\0\0" + b"\xff" * 9_000),
    ]
    yield "font-file-of-noise", PDF, one_page(stream(SAY), described).replace(
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>", font_file
    )  # fmt: skip
    yield "inline-image-without-end", PDF, one_page(stream(b"BI /W 99999 /H 99999 ID " + b"\0" * 100_000))
    overlaid = b"".join(b"BT /F1 12 Tf 72 700 Td (word%d) Tj ET " % number for number in range(30_000))
    yield "all-in-one-place", PDF, one_page(stream(zlib.compress(overlaid), flate))
    letters = b"".join(b"BT /F1 6 Tf %d %d Td (x) Tj ET " % (i * 37 % 600, i * 91 % 790) for i in range(40_000))
    yield "letters-everywhere", PDF, one_page(stream(zlib.compress(letters), flate))
    rows = b"".join(b"BT /F1 6 Tf %d %d Td (ab) Tj ET " % (i % 60 * 10, 790 - i // 60) for i in range(40_000))
    yield "rows-of-sixty", PDF, one_page(stream(zlib.compress(rows), flate))


def _docx_references() -> Iterator[tuple[str, str, bytes]]:
    """Packages that refer to something outside, or carry a program."""
    kinds = ("image", "attachedTemplate", "oleObject", "hyperlink", "footnotes", "numbering", "styles", "frame")
    targets = ("file:///etc/passwd", "http://127.0.0.1:9/x", "\\\\server\\share\\x.dotm", "../../../../etc/passwd")
    for number, kind in enumerate(kinds):
        relations = (
            '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            f'<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/{kind}" '
            f'Target="{targets[number % 4]}" TargetMode="External"/></Relationships>'
        )
        yield f"outside-{kind}", DOCX, package(PARAGRAPH, extra={"word/_rels/document.xml.rels": relations.encode()})
    macro = CONTENT_TYPES.replace(
        b"openxmlformats-officedocument.wordprocessingml.document.main", b"ms-word.document.macroEnabled.main"
    )
    parts = {"[Content_Types].xml": macro, "word/vbaProject.bin": OLE_WORD}
    yield "macros", DOCX, package(PARAGRAPH, extra=parts)
    yield "macros-hidden", DOCX, package(PARAGRAPH, extra={"word/vbaProject.bin": OLE_WORD})
    field = b'<w:p><w:fldSimple w:instr="DDEAUTO c:\\\\x.exe a"><w:r><w:t>Shown.</w:t></w:r></w:fldSimple></w:p>'
    yield "dde-field", DOCX, package(field)
    yield "include-field", DOCX, package(field.replace(b"DDEAUTO c:\\\\x.exe a", b"INCLUDETEXT /etc/passwd"))
    include = b'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="/etc/passwd" parse="text"/>'
    yield "xinclude", DOCX, package(b"<w:p><w:r><w:t>" + include + b"Text.</w:t></w:r></w:p>")
    for name in ("../../escaped.xml", "/etc/cron.d/x", "word/../../x.xml", "C:\\x.xml"):
        yield f"path-{len(name)}", DOCX, package(PARAGRAPH, extra={name: b"<a/>"})
    yield "encrypted", DOCX, OLE_ENCRYPTED
    yield "old-word", DOCX, OLE_WORD


def _docx_structures() -> Iterator[tuple[str, str, bytes]]:
    yield "zip-in-zip", DOCX, archive({"word/document.xml": docx(["x"]), "[Content_Types].xml": CONTENT_TYPES})
    elsewhere = CONTENT_TYPES.replace(b"/word/document.xml", b"/word/document.bin")
    relations = RELS.replace(b"document.xml", b"document.bin")
    laughs = b'<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><d>&b;</d>'
    for name, data in (("doctype", laughs), ("bomb", b"<d>" + b"a" * 200_000_000 + b"</d>")):
        parts = {"[Content_Types].xml": elsewhere, "_rels/.rels": relations, "word/document.bin": data}
        yield f"unusual-name-{name}", DOCX, archive(parts)
    yield "many-attributes", DOCX, package(b"<w:p " + b"".join(b'a%d="" ' % i for i in range(200_000)) + b"/>")
    yield "long-attribute", DOCX, package(b'<w:p a="' + b"x" * 11_000_000 + b'"/>' + PARAGRAPH)
    spaces = b"".join(b'<n%d:a xmlns:n%d="u%d">' % (i, i, i) for i in range(200))
    closing = b"".join(b"</n%d:a>" % i for i in reversed(range(200)))
    yield "many-namespaces", DOCX, package(spaces + closing + PARAGRAPH)
    spanned = b'<w:tc><w:tcPr><w:gridSpan w:val="999999999"/><w:vMerge/></w:tcPr>' + PARAGRAPH + b"</w:tc>"
    yield "wide-span", DOCX, package(b"<w:tbl>" + (b"<w:tr>" + spanned * 3 + b"</w:tr>") * 300 + b"</w:tbl>")
    merged = b"<w:tc><w:tcPr><w:vMerge/></w:tcPr><w:p/></w:tc>"
    tall = b'<w:tc><w:tcPr><w:vMerge w:val="restart"/></w:tcPr>' + PARAGRAPH * 20_000 + b"</w:tc>"
    rows = b"<w:tr>" + tall + b"</w:tr>" + (b"<w:tr>" + merged + b"</w:tr>") * 50_000
    yield "tall-merge", DOCX, package(b"<w:tbl>" + rows + b"</w:tbl>")
    box = b"<w:p><w:r><w:txbxContent>"
    yield "nested-boxes", DOCX, package(box * 80 + PARAGRAPH + b"</w:txbxContent></w:r></w:p>" * 80)
    yield "many-boxes", DOCX, package((box + PARAGRAPH + b"</w:txbxContent></w:r></w:p>") * 40_000)
    referring = b'<w:p><w:r><w:t>x</w:t><w:footnoteReference w:id="2"/></w:r></w:p>'
    yield "notes-that-are-not-there", DOCX, package(referring * 20_000)
    listed = (
        b'<w:p><w:pPr><w:numPr><w:ilvl w:val="%d"/><w:numId w:val="7"/></w:numPr></w:pPr><w:r><w:t>x</w:t></w:r></w:p>'
    )
    yield "lists-without-numbering", DOCX, package(b"".join(listed % (i % 99) for i in range(20_000)))  # fmt: skip
    yield "seven-bit", DOCX, package(b"<w:p/>", prolog=b'<?xml version="1.0" encoding="UTF-7"?>+ADwAIQ-DOCTYPE')
    yield "wrong-encoding", DOCX, package(PARAGRAPH, prolog=b'<?xml version="1.0" encoding="cp037"?>')
    buffer = io.BytesIO(package(PARAGRAPH))
    with zipfile.ZipFile(buffer, "a") as file:
        for _ in range(50):
            with warnings.catch_warnings(action="ignore"):
                file.writestr("word/document.xml", b"<a/>")
    yield "same-part-often", DOCX, buffer.getvalue()
    locked = bytearray(package(PARAGRAPH))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = locked.find(mark)
        while at >= 0:
            locked[at + offset] |= 1
            at = locked.find(mark, at + 4)
    yield "zip-password", DOCX, bytes(locked)


def _texts() -> Iterator[tuple[str, str, bytes]]:
    yield "nul-bytes", TEXT, b"A\0sentence\0here.\n" * 5_000
    yield "control-characters", TEXT, bytes(range(1, 32)) * 5_000 + b"words"
    yield "escape-sequences", TEXT, b"\x1b[2J\x1b]0;title\x07 words \x9b31m" * 5_000
    yield "right-to-left-marks", TEXT, "\u202egnp.exe\u202c \u2066words\u2069\n".encode() * 5_000
    yield "combining-marks", TEXT, ("e" + "\u0301" * 100_000 + " word").encode()
    yield "form-feeds", TEXT, b"\x0c" * 1_000_000 + b"word"
    yield "carriage-returns", TEXT, b"\r" * 1_000_000 + b"word"
    yield "utf-16-without-mark", TEXT, ("words " * 50_000).encode("utf-16-le")
    yield "non-characters", TEXT, "\ufdd0\uffff\U0010ffff words".encode() * 5_000
    yield "table-of-one-column", MARKDOWN, b"|\n-\n" * 60_000
    yield "footnotes", MARKDOWN, b"".join(b"[^%d]: x\n[^%d] " % (i, i) for i in range(30_000))
    yield "open-fence", MARKDOWN, b"```\n" + b"line\n" * 400_000
    yield "underlines", MARKDOWN, b"_" * 200_000 + b" word"
    yield "entities", MARKDOWN, b"&#x110000;&#0;&amp;&bogus; " * 60_000
