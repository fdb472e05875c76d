"""The MIME type of a file by what is in it: the declared type and the extension are claims, not evidence."""

import codecs
import json
import re
import zipfile
from pathlib import Path
from typing import BinaryIO, Final

import puremagic

from backend.contents.encodings import shown_encoding
from backend.contents.media import media_type
from backend.contents.types import ACCEPTED, CSV, DOCX, JSON, JSON_LINES, MARKDOWN, PDF, TEXT

EMPTY: Final = "application/x-empty"
EXECUTABLE: Final = "application/x-executable"
UNKNOWN: Final = "application/octet-stream"

_HEAD_BYTES = 65_536
_PDF_HEADER_WITHIN = 1_024
_MAX_ZIP_DIRECTORY_BYTES = 4 * 1024 * 1024
_ENOUGH_CONFIDENCE = 0.3
_MAX_CONTROL_SHARE = 0.01

_EXECUTABLE_MAGIC = (
    b"\x7fELF",
    b"\xcf\xfa\xed\xfe",
    b"\xce\xfa\xed\xfe",
    b"\xfe\xed\xfa\xcf",
    b"\xfe\xed\xfa\xce",
    b"\xca\xfe\xba\xbe",
    b"\0asm",
)
_EXECUTABLE_EXTENSIONS = frozenset({"exe", "dll", "com", "scr", "msi", "so", "dylib", "app", "bin"})
_MARKDOWN_EXTENSIONS = frozenset({"md", "markdown", "mdown", "mkd"})
_TYPE_OF_EMPTY = {
    "pdf": PDF,
    "docx": DOCX,
    "txt": TEXT,
    "json": JSON,
    "jsonl": JSON_LINES,
    "ndjson": JSON_LINES,
    "csv": CSV,
    **dict.fromkeys(_MARKDOWN_EXTENSIONS, MARKDOWN),
}
_PROLOG = r"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?"
# Text that is a program or a page layout rather than prose, by how it begins.
_MARKUP: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"{_PROLOG}(?:<!doctype\s+svg[^>]*>\s*)?<svg[\s>]", re.IGNORECASE), "image/svg+xml"),
    (re.compile(rf"{_PROLOG}(?:<!doctype\s+html|<html[\s>])", re.IGNORECASE), "text/html"),
    (re.compile(r"<\?xml\s"), "application/xml"),
    (re.compile(r"\{\\rtf\d"), "application/rtf"),
    (re.compile(r"%!PS"), "application/postscript"),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CONTROL_TEXT = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_SECTOR_BYTES = 512


def sniff(path: Path, filename: str) -> str:
    """The MIME type of the file at `path`; `filename` only tells kinds of text apart (Markdown, CSV, JSON).

    Never raises for what is inside the file. A file of no bytes is what its extension says, so that it is refused as
    empty and not for its type; a password-protected Word file counts as DOCX, so that extraction can say so.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        extension = filename.rpartition(".")[2].lower() if "." in filename else ""
        if not head:
            return _TYPE_OF_EMPTY.get(extension, EMPTY)
        if head.startswith(_EXECUTABLE_MAGIC) or (head.startswith(b"MZ") and b"\0" in head):
            return EXECUTABLE
        if b"%PDF-" in head[:_PDF_HEADER_WITHIN]:
            return PDF
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return _sniff_zip(file)
        if head.startswith(_OLE_MAGIC):
            return _sniff_ole(file, head)
        if (media := media_type(head)) is not None:
            return media
        text = _head_of_text(file, head)
    if text is None:
        return _sniff_binary(head)
    return _sniff_text(text, extension)


def _sniff_zip(file: BinaryIO) -> str:
    """DOCX, another known package, or plain `application/zip`; the directory is read only if it is small."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 66_000))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    # No document that is let in (well under 4 GB) needs the 64-bit directory, which states a second size.
    if (
        end < 0
        or b"PK\x06\x07" in tail
        or int.from_bytes(tail[end + 12 : end + 16], "little") > _MAX_ZIP_DIRECTORY_BYTES
    ):
        return "application/zip"
    try:
        with zipfile.ZipFile(file) as archive:
            names = frozenset(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "application/zip"
    if "[Content_Types].xml" in names or "_rels/.rels" in names:
        for part, mime_type in (
            ("word/document.xml", DOCX),
            ("xl/workbook.xml", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
            ("ppt/presentation.xml", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
        ):
            if part in names:
                return mime_type
    if {"content.xml", "META-INF/manifest.xml"} <= names:
        return "application/vnd.oasis.opendocument.text"
    if "META-INF/container.xml" in names:
        return "application/epub+zip"
    return "application/zip"


def _sniff_ole(file: BinaryIO, head: bytes) -> str:
    """Word files under a password are an OLE container with an `EncryptedPackage` stream."""
    directory_sector = int.from_bytes(head[48:52], "little")
    sector_bytes = 4096 if head[30:32] == b"\x0c\x00" else _OLE_SECTOR_BYTES
    file.seek((directory_sector + 1) * sector_bytes)
    directory = file.read(8 * _OLE_SECTOR_BYTES)
    if "EncryptedPackage".encode("utf-16-le") in directory:
        return DOCX
    if "WordDocument".encode("utf-16-le") in directory:
        return "application/msword"
    return "application/x-ole-storage"


def _head_of_text(file: BinaryIO, head: bytes) -> str | None:
    """The first characters if the file is text, else None: a NUL outside UTF-16 and UTF-32 is never text."""
    encoding = shown_encoding(head)
    if encoding is not None:
        return _decoded(head, encoding)
    if len(_CONTROL.findall(head)) > _MAX_CONTROL_SHARE * len(head) or b"\0" in head:
        return None
    while block := file.read(1024 * 1024):
        if b"\0" in block:
            return None
    return head.decode("utf-8", errors="replace")


def _decoded(head: bytes, encoding: str) -> str | None:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        # Not final: the head may end in the middle of a character.
        text = decoder.decode(head)
    except UnicodeDecodeError:
        return None if encoding != "utf-8-sig" else head.decode("utf-8-sig", errors="replace")
    return None if len(_CONTROL_TEXT.findall(text)) > _MAX_CONTROL_SHARE * len(text) else text


def _sniff_binary(head: bytes) -> str:
    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return UNKNOWN
    taken = frozenset().union(*ACCEPTED.values())
    for match in matches:
        mime_type = str(match.mime_type)
        if mime_type and match.confidence >= _ENOUGH_CONFIDENCE and mime_type not in taken:
            return mime_type
    return UNKNOWN


def _sniff_text(head: str, extension: str) -> str:
    if extension in _EXECUTABLE_EXTENSIONS:
        return EXECUTABLE
    start = head.lstrip()
    for pattern, mime_type in _MARKUP:
        if pattern.match(start):
            return mime_type
    if extension in _MARKDOWN_EXTENSIONS:
        return MARKDOWN
    if extension == "csv":
        return CSV
    if extension in {"json", "jsonl", "ndjson"} and start.startswith(("{", "[")):
        return JSON_LINES if _is_json_lines(start, extension) else JSON
    return TEXT


def _is_json_lines(start: str, extension: str) -> bool:
    """A `.json` file of several lines that are whole objects each is JSON lines, whatever it is called."""
    lines = [line for line in start.splitlines()[:3] if line.strip()]
    if extension in {"jsonl", "ndjson"}:
        return True
    if len(lines) < 2 or not lines[1].lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(lines[0]), dict)
    except (ValueError, RecursionError):
        return False
