"""Word documents (DOCX) to blocks: headings by their style, lists, and tables as rows of `a | b | c`."""

import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from docx.document import Document
from docx.opc.part import PartFactory
from docx.oxml import parse_xml
from docx.oxml.ns import qn
from docx.package import Package
from docx.parts.document import DocumentPart

from backend.contents.blocks import Block
from backend.contents.parsers.confinement import start_step
from backend.contents.parsers.failures import (
    DocumentBroken,
    DocumentEncrypted,
    DocumentHasNoText,
    DocumentTooLarge,
    EmptyDocument,
)
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.parsers.word_lists import Numbering, integer

_OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_FLAG = 0x1
_READ_BYTES = 1024 * 1024
# UTF-8 and UTF-16, in both byte orders; in a well-formed part the raw characters stand nowhere else.
_DOCTYPES = tuple("<!DOCTYPE".encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be"))
# What holds the text of templates and of documents with macros, too.
for _content_type in (
    "application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
    "application/vnd.ms-word.document.macroEnabled.main+xml",
    "application/vnd.ms-word.template.macroEnabledTemplate.main+xml",
):
    PartFactory.part_type_for[_content_type] = DocumentPart
_BLOCKS_PER_STEP = 2_000
_DEEPEST_NESTING = 50
_MOST_REPEATED_CELL = 100
_MOST_COLUMNS_SPANNED = 1_000

_P, _TBL, _SDT, _SDT_CONTENT = qn("w:p"), qn("w:tbl"), qn("w:sdt"), qn("w:sdtContent")
_TR, _TC, _T, _TAB = qn("w:tr"), qn("w:tc"), qn("w:t"), qn("w:tab")
_BREAKS = frozenset({qn("w:br"), qn("w:cr")})
_NO_BREAK_HYPHEN = qn("w:noBreakHyphen")
_NOTES = {qn("w:footnoteReference"): "footnotes", qn("w:endnoteReference"): "endnotes"}
_TEXT_BOX = qn("w:txbxContent")
# Deleted and moved-away text, text boxes (read on their own, and repeated in the fallback) and properties, whose tabs
# are tab stops.
_SKIPPED = frozenset(
    {qn("w:del"), qn("w:moveFrom"), qn("w:pPr"), qn("w:rPr"), qn("w:instrText"), qn("w:delText"), _TEXT_BOX}
    | {"{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"}
)
_WRAPPERS = frozenset({qn("w:ins"), qn("w:customXml"), qn("w:smartTag"), qn("w:moveTo")})
_HEADING_NAME = re.compile(r"heading (\d)", re.IGNORECASE)
_LIST_NAME = re.compile(r"list (?:bullet|number|continue|paragraph)?\s*(\d)?", re.IGNORECASE)


def parse_word(source: Path, limits: ExtractionLimits) -> tuple[int | None, Iterable[Block]]:
    """Blocks of a DOCX; it has no pages before it is laid out. The package is checked before anything opens it."""
    with source.open("rb") as file:
        if file.read(len(_OLE_MAGIC)) == _OLE_MAGIC:
            raise DocumentEncrypted
    try:
        with zipfile.ZipFile(source) as archive:
            _check_package(archive, limits)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DocumentBroken from error
    start_step(limits)
    document = _open(source)
    return None, _blocks(document, limits)


def _open(source: Path) -> Document:
    """The document of a package, also of a template or of one with macros, which are never looked at."""
    part = Package.open(str(source)).main_document_part
    if not isinstance(part, DocumentPart):
        raise DocumentBroken
    document: Document = part.document
    return document


def _check_package(archive: zipfile.ZipFile, limits: ExtractionLimits) -> None:
    """Refuse bombs by their declared sizes, which the reader then enforces, and any DOCTYPE."""
    parts = archive.infolist()
    xml = [part for part in parts if part.filename.lower().endswith((".xml", ".rels"))]
    if len(parts) > limits.parts or sum(part.file_size for part in parts) > limits.unpacked_bytes:
        raise DocumentTooLarge
    if sum(part.file_size for part in xml) > limits.unpacked_xml_bytes:
        raise DocumentTooLarge
    if any(part.flag_bits & _ENCRYPTED_FLAG for part in parts):
        raise DocumentEncrypted
    for part in xml:
        with archive.open(part) as file:
            if _has_doctype(file):
                raise DocumentBroken(
                    "The document declares a DOCTYPE, which Word never writes. Open it in Word or LibreOffice, "
                    "save it anew as DOCX and upload that."
                )


def _has_doctype(file: IO[bytes]) -> bool:
    kept = b""
    while block := file.read(_READ_BYTES):
        window = kept + block
        if any(mark in window for mark in _DOCTYPES):
            return True
        kept = window[-len(_DOCTYPES[1]) :]
    return False


def _blocks(document: Document, limits: ExtractionLimits) -> Iterator[Block]:
    reader = _Reader(document)
    found = 0
    for element in _body_elements(document.element.body, 0):
        found += 1
        if found % _BLOCKS_PER_STEP == 0:
            start_step(limits)
        yield from reader.blocks(element)
    if not found:
        raise EmptyDocument
    has_images = any(part.partname.startswith("/word/media/") for part in document.part.package.iter_parts())
    if has_images and not any(_text(p).strip() for p in document.element.body.iter(_P)):
        raise DocumentHasNoText(
            "The document holds pictures but no text. Run text recognition (OCR) on them first, and upload the result."
        )


class _Reader:
    """Blocks of the elements of one body, each with the text boxes and notes that hang on it."""

    def __init__(self, document: Document) -> None:
        self._styles = _Styles(document)
        self._numbering = Numbering(_related(document, "numbering"))
        self._notes = {kind: _notes(_related(document, kind)) for kind in _NOTES.values()}

    def blocks(self, element: Any) -> Iterator[Block]:
        if element.tag == _TBL:
            yield Block("table", "\n".join(_rows(element, 0)))
        else:
            yield from self._paragraph(element)
        for kind, number in _references(element):
            # Taken out: a note that is referred to again is not repeated.
            note = self._notes[kind].pop(number, "")
            if note:
                yield Block("paragraph", note)

    def _paragraph(self, paragraph: Any) -> Iterator[Block]:
        text = _text(paragraph)
        if text.strip():
            kind, level, numbering = self._styles.role(paragraph)
            if kind == "heading":
                yield Block("heading", text.replace("\n", " "), level)
            elif kind == "list_item":
                yield Block("list_item", f"{self._numbering.marker(numbering, level)} {text}", level)
            else:
                yield Block("paragraph", text)
        for box in paragraph.iter(_TEXT_BOX):
            # The innermost paragraph that a box stands in is the one that reads it; a fallback repeats it.
            if _closest(box, _P) is paragraph and not _is_skipped(box, paragraph):
                for element in _body_elements(box, 0):
                    if element.tag == _P:
                        yield from self._paragraph(element)
                    else:
                        yield Block("table", "\n".join(_rows(element, 0)))


def _related(document: Document, kind: str) -> Any:
    """The root of a part beside the document, such as its footnotes; None if there is none or it is no XML."""
    for relation in document.part.rels.values():
        if not relation.is_external and relation.reltype.endswith(f"/{kind}"):
            part = relation.target_part
            try:
                return part.element if hasattr(part, "element") else parse_xml(part.blob)
            except SyntaxError:
                # The notes of a document that is otherwise whole may be lost.
                return None
    return None


def _notes(root: Any) -> dict[str, str]:
    """Texts by their number. Separators have a type and are no notes."""
    if root is None:
        return {}
    texts = {}
    for note in root:
        if note.get(qn("w:type")) in {None, "normal"} and note.get(qn("w:id")) is not None:
            texts[note.get(qn("w:id"))] = "\n".join(filter(None, (_text(p).strip() for p in note.iter(_P))))
    return texts


def _references(element: Any) -> Iterator[tuple[str, str]]:
    for reference in element.iter(*_NOTES):
        yield _NOTES[reference.tag], reference.get(qn("w:id")) or ""


def _is_skipped(element: Any, until: Any) -> bool:
    parent = element.getparent()
    while parent is not None and parent is not until:
        if parent.tag in _SKIPPED:
            return True
        parent = parent.getparent()
    return False


def _body_elements(parent: Any, depth: int) -> Iterator[Any]:
    """Paragraphs and tables in order, also those inside content controls."""
    if depth > _DEEPEST_NESTING:
        return
    for child in parent:
        if child.tag in (_P, _TBL):
            yield child
        elif child.tag in (_SDT, _SDT_CONTENT) or child.tag in _WRAPPERS:
            yield from _body_elements(child, depth + 1)


def _rows(table: Any, depth: int) -> Iterator[str]:
    above: dict[int, str] = {}
    for row in table.iter(_TR):
        if row.getparent() is not table and _closest(row, _TBL) is not table:
            continue
        cells = []
        column = 0
        for cell in row.iter(_TC):
            if _closest(cell, _TBL) is not table:
                continue
            text = " ".join(_cell_texts(cell, depth))
            merged, columns = _span(cell)
            # What stands in a cell of several rows is said in each of them, if it is a label and not a text.
            if merged and not text and len(above.get(column, "")) <= _MOST_REPEATED_CELL:
                text = above.get(column, "")
            above[column] = text if merged is not None else ""
            cells.append(text)
            column += columns
        if any(cells):
            yield " | ".join(cells)


def _span(cell: Any) -> tuple[bool | None, int]:
    """Whether a cell goes on from the row above (None if it is of one row), and over how many columns it goes."""
    properties = cell.find(qn("w:tcPr"))
    if properties is None:
        return None, 1
    merge, span = properties.find(qn("w:vMerge")), properties.find(qn("w:gridSpan"))
    columns = max(1, min(integer(span) or 1, _MOST_COLUMNS_SPANNED))
    return (None if merge is None else merge.get(qn("w:val")) != "restart"), columns


def _cell_texts(cell: Any, depth: int) -> Iterator[str]:
    for element in _body_elements(cell, 0):
        if element.tag == _P:
            text = " ".join(_text(element).split())
            if text:
                yield text
        elif depth < _DEEPEST_NESTING:
            yield "; ".join(_rows(element, depth + 1))


def _closest(element: Any, tag: str) -> Any:
    parent = element.getparent()
    while parent is not None and parent.tag != tag:
        parent = parent.getparent()
    return parent


def _text(paragraph: Any) -> str:
    parts: list[str] = []
    stack = [iter(paragraph)]
    # An explicit stack: the nesting is the document's to choose.
    while stack:
        child = next(stack[-1], None)
        if child is None:
            stack.pop()
        elif child.tag == _T:
            parts.append(child.text or "")
        elif child.tag == _TAB:
            parts.append("\t")
        elif child.tag in _BREAKS:
            parts.append("\n")
        elif child.tag == _NO_BREAK_HYPHEN:
            parts.append("-")
        elif child.tag not in _SKIPPED:
            stack.append(iter(child))
    return "".join(parts)


class _Styles:
    """What a paragraph is, by its own properties or by those of its style and the styles that one is based on."""

    def __init__(self, document: Document) -> None:
        self._by_id = {style.get(qn("w:styleId")): style for style in document.styles.element.iter(qn("w:style"))}
        self._roles: dict[str | None, tuple[str, int, int | None]] = {}

    def role(self, paragraph: Any) -> tuple[str, int, int | None]:
        """(`heading`, 1 to 6), (`list_item`, depth from 1) or (`paragraph`, 0), and the numbering if it has one."""
        properties = paragraph.find(qn("w:pPr"))
        style_id = None
        if properties is not None:
            style = properties.find(qn("w:pStyle"))
            style_id = style.get(qn("w:val")) if style is not None else None
        if style_id not in self._roles:
            self._roles[style_id] = self._style_role(style_id)
        inherited = self._roles[style_id]
        if properties is not None and inherited[0] != "heading":
            return self._own_role(properties) or inherited
        return inherited

    def _style_role(self, style_id: str | None) -> tuple[str, int, int | None]:
        seen: set[str] = set()
        while style_id is not None and style_id in self._by_id and style_id not in seen:
            seen.add(style_id)
            style = self._by_id[style_id]
            name_element = style.find(qn("w:name"))
            name = (name_element.get(qn("w:val")) or "") if name_element is not None else ""
            if heading := _HEADING_NAME.match(name):
                return "heading", max(1, min(6, int(heading[1]))), None
            if name.lower() == "title":
                return "heading", 1, None
            properties = style.find(qn("w:pPr"))
            own = self._own_role(properties) if properties is not None else None
            if listed := _LIST_NAME.match(name):
                return "list_item", max(1, min(6, int(listed[1] or 1))), own[2] if own else None
            if own:
                return own
            base = style.find(qn("w:basedOn"))
            style_id = base.get(qn("w:val")) if base is not None else None
        return "paragraph", 0, None

    def _own_role(self, properties: Any) -> tuple[str, int, int | None] | None:
        outline = integer(properties.find(qn("w:outlineLvl")))
        if outline is not None and 0 <= outline <= 8:
            return "heading", min(6, outline + 1), None
        numbering = properties.find(qn("w:numPr"))
        number = integer(numbering.find(qn("w:numId"))) if numbering is not None else 0
        # A numbering id of 0 takes the numbering of the style away.
        if numbering is not None and number != 0:
            return "list_item", max(1, min(6, (integer(numbering.find(qn("w:ilvl"))) or 0) + 1)), number
        return None
