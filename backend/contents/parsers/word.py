"""Word documents (DOCX) to blocks: headings by their style, lists, and tables as rows of `a | b | c`."""

import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import docx
from docx.document import Document
from docx.oxml.ns import qn

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

_OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_FLAG = 0x1
_READ_BYTES = 1024 * 1024
# UTF-8 and UTF-16, in both byte orders; in a well-formed part the raw characters stand nowhere else.
_DOCTYPES = tuple("<!DOCTYPE".encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be"))
_BLOCKS_PER_STEP = 2_000
_DEEPEST_NESTING = 50

_P, _TBL, _SDT, _SDT_CONTENT = qn("w:p"), qn("w:tbl"), qn("w:sdt"), qn("w:sdtContent")
_TR, _TC, _T, _TAB = qn("w:tr"), qn("w:tc"), qn("w:t"), qn("w:tab")
_BREAKS = frozenset({qn("w:br"), qn("w:cr")})
_NO_BREAK_HYPHEN = qn("w:noBreakHyphen")
# Deleted and moved-away text, text boxes (which repeat in the fallback) and properties, whose tabs are tab stops.
_SKIPPED = frozenset(
    {qn("w:del"), qn("w:moveFrom"), qn("w:pPr"), qn("w:rPr"), qn("w:instrText")}
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
    document = docx.Document(str(source))
    return None, _blocks(document, limits)


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
    styles = _Styles(document)
    found = 0
    for element in _body_elements(document.element.body, 0):
        found += 1
        if found % _BLOCKS_PER_STEP == 0:
            start_step(limits)
        if element.tag == _TBL:
            yield Block("table", "\n".join(_rows(element, 0)))
            continue
        text = _text(element)
        if text.strip():
            kind, level = styles.role(element)
            if kind == "heading":
                yield Block("heading", text.replace("\n", " "), level)
            elif kind == "list_item":
                yield Block("list_item", f"- {text}", level)
            else:
                yield Block("paragraph", text)
    if not found:
        raise EmptyDocument
    has_images = any(part.partname.startswith("/word/media/") for part in document.part.package.iter_parts())
    if has_images and not any(_text(p).strip() for p in document.element.body.iter(_P)):
        raise DocumentHasNoText(
            "The document holds pictures but no text. Run text recognition (OCR) on them first, and upload the result."
        )


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
    for row in table.iter(_TR):
        if row.getparent() is not table and _closest_table(row) is not table:
            continue
        cells = [" ".join(_cell_texts(cell, depth)) for cell in row.iter(_TC) if _closest_table(cell) is table]
        # Merged cells repeat nothing here, and an empty row says nothing.
        if any(cells):
            yield " | ".join(cells)


def _cell_texts(cell: Any, depth: int) -> Iterator[str]:
    for element in _body_elements(cell, 0):
        if element.tag == _P:
            text = " ".join(_text(element).split())
            if text:
                yield text
        elif depth < _DEEPEST_NESTING:
            yield "; ".join(_rows(element, depth + 1))


def _closest_table(element: Any) -> Any:
    parent = element.getparent()
    while parent is not None and parent.tag != _TBL:
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
        self._roles: dict[str | None, tuple[str, int]] = {}

    def role(self, paragraph: Any) -> tuple[str, int]:
        """(`heading`, 1 to 6), (`list_item`, depth from 1) or (`paragraph`, 0)."""
        properties = paragraph.find(qn("w:pPr"))
        style_id = None
        if properties is not None:
            style = properties.find(qn("w:pStyle"))
            style_id = style.get(qn("w:val")) if style is not None else None
        if style_id not in self._roles:
            self._roles[style_id] = self._style_role(style_id)
        kind, level = self._roles[style_id]
        if properties is not None and kind != "heading":
            own = self._own_role(properties)
            return own or (kind, level)
        return kind, level

    def _style_role(self, style_id: str | None) -> tuple[str, int]:
        seen: set[str] = set()
        while style_id is not None and style_id in self._by_id and style_id not in seen:
            seen.add(style_id)
            style = self._by_id[style_id]
            name_element = style.find(qn("w:name"))
            name = (name_element.get(qn("w:val")) or "") if name_element is not None else ""
            if heading := _HEADING_NAME.match(name):
                return "heading", max(1, min(6, int(heading[1])))
            if name.lower() == "title":
                return "heading", 1
            if listed := _LIST_NAME.match(name):
                return "list_item", max(1, min(6, int(listed[1] or 1)))
            properties = style.find(qn("w:pPr"))
            if properties is not None and (own := self._own_role(properties)):
                return own
            base = style.find(qn("w:basedOn"))
            style_id = base.get(qn("w:val")) if base is not None else None
        return "paragraph", 0

    def _own_role(self, properties: Any) -> tuple[str, int] | None:
        outline = _integer(properties.find(qn("w:outlineLvl")))
        if outline is not None and 0 <= outline <= 8:
            return "heading", min(6, outline + 1)
        numbering = properties.find(qn("w:numPr"))
        # A numbering id of 0 takes the numbering of the style away.
        if numbering is not None and _integer(numbering.find(qn("w:numId"))) != 0:
            return "list_item", max(1, min(6, (_integer(numbering.find(qn("w:ilvl"))) or 0) + 1))
        return None


def _integer(element: Any) -> int | None:
    value = element.get(qn("w:val")) if element is not None else None
    return int(value) if value is not None and value.lstrip("-").isdigit() and len(value) < 10 else None
