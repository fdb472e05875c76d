"""Builds documents for the tests, ordinary and hostile, from nothing but this code."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from docx import Document
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
TEXT = "text/plain"
MARKDOWN = "text/markdown"

CONTENT_TYPES = (
    b'<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    b'<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    b'<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
    b'wordprocessingml.document.main+xml"/></Types>'
)
RELS = (
    b'<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    b'<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    b'Target="word/document.xml"/></Relationships>'
)


def _ole(stream_name: str) -> bytes:
    """The header of a compound file whose directory, in sector 0, names one stream."""
    header = bytearray(512)
    header[:8] = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
    header[30:32] = b"\x09\x00"
    return bytes(header) + stream_name.encode("utf-16-le").ljust(512, b"\0")


OLE_WORD = _ole("WordDocument")
OLE_ENCRYPTED = _ole("EncryptedPackage")
WORD_NAMESPACE = b'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def pdf(pages: list[list[str]], *, password: str | None = None, owner_only: bool = False) -> bytes:
    """A PDF with these lines on its pages, 14 points apart; `owner_only` encrypts it with an empty user password."""
    buffer = io.BytesIO()
    encrypt = None
    if password is not None:
        encrypt = StandardEncryption("" if owner_only else password, ownerPassword=password, canPrint=0, strength=128)
    canvas = Canvas(buffer, invariant=1, encrypt=encrypt)
    for lines in pages:
        for index, line in enumerate(lines):
            canvas.drawString(72, 720 - 14 * index, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def scanned_pdf(pages: int) -> bytes:
    """Pages that are one picture each."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1)
    for _ in range(pages):
        canvas.drawInlineImage(_picture(), 0, 0, 595, 842)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def docx(paragraphs: list[str]) -> bytes:
    document = Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def package(body: bytes, *, prolog: bytes = b'<?xml version="1.0"?>', extra: dict[str, bytes] | None = None) -> bytes:
    """The smallest DOCX around this content of `w:body`."""
    document = prolog + b"<w:document " + WORD_NAMESPACE + b"><w:body>" + body + b"</w:body></w:document>"
    return archive(
        {"[Content_Types].xml": CONTENT_TYPES, "_rels/.rels": RELS, "word/document.xml": document} | (extra or {})
    )


def archive(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    return buffer.getvalue()


def raw_pdf(objects: list[bytes], *, trailer: bytes = b"/Root 1 0 R", xref: bytes | None = None) -> bytes:
    """A PDF of these objects, numbered from 1, with a right cross-reference table unless another is given."""
    out = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    start = len(out)
    if xref is None:
        xref = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
        xref += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return bytes(
        out + xref + b"trailer\n<< /Size %d " % (len(objects) + 1) + trailer + b" >>\nstartxref\n%d\n%%%%EOF" % start
    )


def stream(data: bytes, entries: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n" % (len(data), entries) + data + b"\nendstream"


def one_page(content: bytes, extra: list[bytes] | None = None, resources: bytes = b"") -> bytes:
    """A PDF of one page whose content stream is object 4; further objects count from 6."""
    return raw_pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
            b"/Resources << /Font << /F1 5 0 R >> " + resources + b" >> >>",
            content,
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            *(extra or []),
        ]
    )


def hostile() -> Iterator[tuple[str, str, bytes]]:
    """(name, MIME type, bytes) of at least 100 files that try to break a parser; the same on every run."""
    dice = random.Random(20240917)
    yield from _mutated_pdfs(dice)
    yield from _pdf_bombs(dice)
    yield from _pdf_mazes()
    yield from _crafted_docx()
    yield from _mutated_docx(dice)
    yield from _hostile_text(dice)


def mutations() -> Iterator[tuple[str, str, bytes]]:
    """The hostile files that are quick to build."""
    dice = random.Random(7)
    yield from _mutated_pdfs(dice)
    yield from _mutated_docx(dice)


def _mutated_pdfs(dice: random.Random) -> Iterator[tuple[str, str, bytes]]:
    sample = (Path(__file__).parents[2] / "examples" / "quillon-40.pdf").read_bytes()
    for number in range(12):
        yield f"truncated-{number}", PDF, sample[: len(sample) * (number + 1) // 14]
    for number in range(24):
        broken = bytearray(sample)
        for _ in range(2 ** (number % 9)):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        yield f"flipped-{number}", PDF, bytes(broken)
    for number in range(8):
        at, length = dice.randrange(len(sample)), dice.randrange(2_000)
        yield f"cut-out-{number}", PDF, sample[:at] + sample[at + length :]
    for number in range(8):
        yield f"random-{number}", PDF, b"%%PDF-1.%d\n" % number + dice.randbytes(10 ** (number % 5 + 1))
    yield "doubled", PDF, sample + sample


def _pdf_bombs(dice: random.Random) -> Iterator[tuple[str, str, bytes]]:
    """Small files that unpack or draw without end."""
    zeros = zlib.compress(b"\0" * 400_000_000, 1)
    yield "flate-bomb", PDF, one_page(stream(zeros, b"/Filter /FlateDecode"))
    for depth in (2, 3):
        data = b" " * 200_000_000
        for _ in range(depth):
            data = zlib.compress(data, 1)
        filters = b"/Filter [" + b"/FlateDecode " * depth + b"]"
        yield f"nested-flate-{depth}", PDF, one_page(stream(data, filters))
    text = zlib.compress(b"BT /F1 9 Tf 9 9 Td (aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa) Tj ET\n" * 2_000_000, 1)
    yield "endless-text", PDF, one_page(stream(text, b"/Filter /FlateDecode"))
    moving = b"".join(b"BT /F1 9 Tf %d %d Td (a b) Tj ET\n" % (i % 600, i * 7 % 790) for i in range(120_000))
    yield "scattered-text", PDF, one_page(stream(zlib.compress(moving), b"/Filter /FlateDecode"))
    yield "many-fonts", PDF, one_page(stream(b"".join(b"BT /F%d 9 Tf (x) Tj ET " % i for i in range(200_000))))
    run_length = stream(b"\x81 " * 3_000_000 + b"\x80", b"/Filter /RunLengthDecode")
    yield "run-length-bomb", PDF, one_page(run_length)
    lzw = stream(dice.randbytes(200_000), b"/Filter /LZWDecode")
    yield "lzw-noise", PDF, one_page(lzw)


def _pdf_mazes() -> Iterator[tuple[str, str, bytes]]:
    """Files whose objects nest, loop or lie."""
    yield "nested-states", PDF, one_page(stream(b"q " * 2_000_000))
    yield "nested-arrays", PDF, one_page(stream(b"[" * 1_000_000))
    yield "nested-objects", PDF, raw_pdf([b"[" * 200_000 + b"]" * 200_000])
    yield "deep-dictionary", PDF, raw_pdf([b"<< /A " * 100_000])
    yield (
        "million-pages",
        PDF,
        raw_pdf(
            [
                b"<< /Type /Catalog /Pages 2 0 R >>",
                b"<< /Type /Pages /Kids [3 0 R] /Count 1000000 >>",
                b"<< /Type /Page /Parent 2 0 R >>",
            ]
        ),
    )
    yield (
        "negative-pages",
        PDF,
        raw_pdf(
            [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count -7 >>", b"<< /Type /Page >>"]
        ),
    )
    kids = b"3 0 R " * 20_000
    yield (
        "same-page-often",
        PDF,
        raw_pdf(
            [
                b"<< /Type /Catalog /Pages 2 0 R >>",
                b"<< /Type /Pages /Kids [" + kids + b"] /Count 20000 >>",
                b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>",
            ]
        ),
    )
    yield (
        "page-tree-loop",
        PDF,
        raw_pdf([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R] /Count 5 /Parent 2 0 R >>"]),
    )
    form = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X %d 0 R >> >>"
    yield "form-loop", PDF, one_page(stream(b"/X Do"), [stream(b"/X Do /X Do", form % 6)], b"/XObject << /X 6 0 R >>")
    chain = [stream(b"/X Do " * 10, form % (7 + i)) for i in range(12)] + [stream(b"0 0 1 1 re f", form % 6)]
    yield "form-fan", PDF, one_page(stream(b"/X Do"), chain, b"/XObject << /X 6 0 R >>")
    yield "xref-loop", PDF, raw_pdf([b"<< /Type /Catalog >>"], trailer=b"/Root 1 0 R /Prev 45")
    yield "xref-huge", PDF, raw_pdf([b"<< >>"], xref=b"xref\n0 99999999\n0000000000 65535 f \n")
    yield "huge-object-number", PDF, b"%PDF-1.4\n4294967295 0 obj\n<<>>\nendobj\ntrailer << /Root 4294967295 0 R >>"
    yield "length-lies", PDF, one_page(b"<< /Length 999999999999 >>\nstream\nBT\nendstream")
    yield (
        "object-stream-loop",
        PDF,
        raw_pdf(
            [
                b"<< /Type /Catalog /Pages 2 0 R >>",
                stream(b"2 0 << >>", b"/Type /ObjStm /N 99999999 /First 4 /Extends 2 0 R"),
            ]
        ),
    )
    yield "wild-numbers", PDF, one_page(stream(b"BT /F1 1e38 Tf 9" + b"9" * 5_000 + b" 0 Td (x) Tj ET"))
    yield "not-a-number", PDF, one_page(stream(b"BT /F1 12 Tf nan inf -inf 0 0 0 Tm (hello there) Tj ET"))
    yield "huge-page", PDF, one_page(stream(b"BT /F1 12 Tf (hi) Tj ET")).replace(b"612 792", b"9e9 9e9")
    yield (
        "fax-bomb",
        PDF,
        one_page(
            stream(b"/I Do"),
            [
                stream(
                    b"\xff" * 999,
                    b"/Type /XObject /Subtype /Image /Width 99999 /Height 99999 /BitsPerComponent 1 "
                    b"/ColorSpace /DeviceGray /Filter /CCITTFaxDecode",
                )
            ],
            b"/XObject << /I 6 0 R >>",
        ),
    )
    yield (
        "encryption-nonsense",
        PDF,
        raw_pdf(
            [b"<< /Type /Catalog >>"],
            trailer=b"/Root 1 0 R /Encrypt << /Filter /Standard /V 9 /R 99 /O () /U () /P 1 >>",
        ),
    )


def _crafted_docx() -> Iterator[tuple[str, str, bytes]]:
    paragraph = b"<w:p><w:r><w:t>Text.</w:t></w:r></w:p>"
    laughs = (
        b'<!DOCTYPE lolz [<!ENTITY a "ha">'
        + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9))
        + b"]>"
    )
    body = b"<w:p><w:r><w:t>&j;</w:t></w:r></w:p>"
    yield "billion-laughs", DOCX, package(body, prolog=laughs)
    quadratic = b'<!DOCTYPE q [<!ENTITY a "' + b"x" * 50_000 + b'">]>'
    yield (
        "quadratic-entities",
        DOCX,
        package(b"<w:p><w:r><w:t>" + b"&a;" * 5_000 + b"</w:t></w:r></w:p>", prolog=quadratic),
    )
    for number, target in enumerate((b"file:///etc/passwd", b"http://127.0.0.1:9/x", b"//server/share")):
        prolog = b'<!DOCTYPE d [<!ENTITY x SYSTEM "' + target + b'">]>'
        yield f"external-entity-{number}", DOCX, package(b"<w:p><w:r><w:t>&x;</w:t></w:r></w:p>", prolog=prolog)
    yield (
        "doctype-utf-16",
        DOCX,
        archive(
            {
                "[Content_Types].xml": CONTENT_TYPES,
                "_rels/.rels": RELS,
                "word/document.xml": '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE d><d/>'.encode("utf-16"),
            }
        ),
    )
    yield "zip-bomb-xml", DOCX, package(b"<w:p><w:r><w:t>" + b"a" * 120_000_000 + b"</w:t></w:r></w:p>")
    yield "zip-bomb-media", DOCX, package(paragraph, extra={"word/media/a.png": b"\0" * 350_000_000})
    yield "many-parts", DOCX, package(paragraph, extra={f"word/x{i}.xml": b"<a/>" for i in range(8_000)})
    yield "deep-xml", DOCX, package(b"<w:sdt>" * 100_000 + b"</w:sdt>" * 100_000)
    yield "deep-sdt", DOCX, package(b"<w:sdt><w:sdtContent>" * 100 + paragraph + b"</w:sdtContent></w:sdt>" * 100)
    table = b"<w:tbl><w:tr><w:tc>"
    yield "nested-tables", DOCX, package(table * 60 + paragraph + b"</w:tc></w:tr></w:tbl>" * 60)
    yield "many-paragraphs", DOCX, package(paragraph * 150_000)
    yield (
        "wide-table",
        DOCX,
        package(b"<w:tbl><w:tr>" + (b"<w:tc>" + paragraph + b"</w:tc>") * 50_000 + b"</w:tr></w:tbl>"),
    )
    yield "no-document", DOCX, archive({"[Content_Types].xml": CONTENT_TYPES, "_rels/.rels": RELS})
    yield (
        "document-elsewhere",
        DOCX,
        archive(
            {
                "[Content_Types].xml": CONTENT_TYPES,
                "_rels/.rels": RELS.replace(b"word/document.xml", b"../../etc/passwd"),
            }
        ),
    )
    yield (
        "not-xml",
        DOCX,
        archive({"[Content_Types].xml": CONTENT_TYPES, "_rels/.rels": RELS, "word/document.xml": b"\0\1"}),
    )
    yield (
        "wild-list-level",
        DOCX,
        package(
            b'<w:p><w:pPr><w:numPr><w:ilvl w:val="99999999999999"/><w:numId w:val="x"/></w:numPr></w:pPr>'
            b"<w:r><w:t>Text.</w:t></w:r></w:p>"
        ),
    )
    lying = bytearray(package(b"<w:p><w:r><w:t>" + b"b" * 90_000_000 + b"</w:t></w:r></w:p>"))
    at = lying.rfind(b"PK\x01\x02", 0, lying.rfind(b"word/document.xml"))
    struct.pack_into("<I", lying, at + 24, 100)
    yield "size-lies", DOCX, bytes(lying)


def _mutated_docx(dice: random.Random) -> Iterator[tuple[str, str, bytes]]:
    sample = docx(["One sentence stands here.", "Another one follows."] * 20)
    for number in range(8):
        yield f"docx-truncated-{number}", DOCX, sample[: len(sample) * (number + 1) // 9]
    for number in range(12):
        broken = bytearray(sample)
        for _ in range(2**number % 500 + 1):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        yield f"docx-flipped-{number}", DOCX, bytes(broken)


def _hostile_text(dice: random.Random) -> Iterator[tuple[str, str, bytes]]:
    yield "deep-quotes", MARKDOWN, b"> " * 50_000 + b"text"
    yield "deep-lists", MARKDOWN, b"\n".join(b" " * (2 * i) + b"- item" for i in range(3_000))
    yield "open-brackets", MARKDOWN, b"[" * 100_000
    yield "open-links", MARKDOWN, b"[a](" * 50_000
    yield "open-images", MARKDOWN, b"![" * 50_000 + b"](x)"
    yield "stars", MARKDOWN, b"*a **b " * 50_000
    yield "backticks", MARKDOWN, b" ".join(b"`" * (i % 900 + 1) for i in range(3_000))
    yield "wide-table-md", MARKDOWN, b"|a" * 20_000 + b"|\n" + b"|-" * 20_000 + b"|\n" + b"|b" * 20_000 + b"|\n"
    yield "references", MARKDOWN, b"".join(b"[%d]: x\n" % i for i in range(60_000))
    yield "html-comments", MARKDOWN, b"<!--" * 100_000
    yield "angle-brackets", MARKDOWN, b"a <" * 200_000
    yield "giant-line", TEXT, b"x" * 19_000_000
    yield "giant-line-of-words", TEXT, b"word " * 3_000_000
    yield "too-much-text", TEXT, b"A sentence of words.\n" * 1_200_000
    yield "only-blanks", TEXT, b" \n\t\r\n" * 100_000
    yield "full-stops", TEXT, b"." * 2_000_000
    yield "bullets", TEXT, b"- \n* " * 200_000
    yield (
        "mixed-encodings",
        TEXT,
        ("é" * 50_000).encode() + ("\n" + "è" * 50_000).encode("cp1252") + dice.randbytes(50_000),
    )
    yield "utf-16-cut", TEXT, "Une phrase entière.".encode("utf-16")[:-1]
    yield "utf-16-lone-surrogates", TEXT, b"\xff\xfe" + b"\x00\xd8" * 5_000
    yield "utf-32-out-of-range", TEXT, b"\xff\xfe\x00\x00" + b"\xff\xff\xff\xff" * 5_000
    yield "random-text", TEXT, dice.randbytes(1_000_000)


def _picture() -> object:
    from PIL import Image

    return Image.new("L", (60, 80), 200)
