"""Multipart bodies, written to disk as they arrive and refused as soon as one file is too large."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

from backend.contents import names
from backend.contents.errors import FileTooLarge, ProjectFull
from backend.kit.errors import DomainError

_FIELD_BYTES = 64 * 1024
_MAX_FIELDS = 32


class BadMultipart(DomainError):
    code = "BAD_MULTIPART"
    template = (
        "The body is not a valid multipart/form-data upload: {reason}. "
        "Send each file in a part named '{field}', and the other fields beside it."
    )


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file of the request, on disk until the request is over."""

    path: Path
    filename: str
    declared_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Form:
    """What a multipart body held."""

    fields: dict[str, str]
    files: list[ReceivedFile]


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one request may bring: `room_bytes` is what is left of the project's `max_project_mb`."""

    max_file_mb: int
    max_files: int
    max_project_mb: int
    room_bytes: int


@asynccontextmanager
async def receive(request: Request, *, file_field: str, limits: UploadLimits) -> AsyncIterator[Form]:
    """Reads the body part by part. Raises FileTooLarge, ProjectFull or BadMultipart without reading the rest."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise BadMultipart(field=file_field, reason="Content-Type must be multipart/form-data with a boundary")
    with TemporaryDirectory(prefix="finetuneflow-upload-") as folder:
        reader = _Reader(Path(folder), file_field, limits)
        try:
            parser = MultipartParser(options[b"boundary"], reader.callbacks())
            async for part in request.stream():
                parser.write(part)
            parser.finalize()
        except FormParserError as error:
            raise BadMultipart(field=file_field, reason=str(error)) from error
        finally:
            reader.close()
        if not reader.complete:
            raise BadMultipart(field=file_field, reason="the body ends before its last boundary")
        yield Form(fields=reader.fields, files=reader.files)


class _Reader:
    """The parser's callbacks: headers of a part, its data, its end."""

    def __init__(self, folder: Path, file_field: str, limits: UploadLimits) -> None:
        self.fields: dict[str, str] = {}
        self.files: list[ReceivedFile] = []
        self.complete = False
        self._folder = folder
        self._file_field = file_field
        self._limits = limits
        self._room = limits.room_bytes
        self._reset()

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._reset,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _reset(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._field = ""
        self._filename: str | None = None
        self._data = bytearray()
        self._size = 0
        self._file: BinaryIO | None = None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            return
        self._filename = options[b"filename"].decode("utf-8", "replace")
        if self._field != self._file_field:
            raise BadMultipart(field=self._file_field, reason=f"files belong in the field '{self._file_field}'")
        if len(self.files) >= self._limits.max_files:
            raise BadMultipart(
                field=self._file_field, reason=f"more than {self._limits.max_files} files in one request"
            )
        self._file = (self._folder / str(len(self.files))).open("wb")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._file is not None:
            self._room -= end - start
            if self._size > self._limits.max_file_mb * 1024 * 1024:
                filename = names.safe_filename(self._filename or "")
                raise FileTooLarge(limit_mb=self._limits.max_file_mb, filename=filename)
            if self._room < 0:
                raise ProjectFull(limit_mb=self._limits.max_project_mb)
            self._file.write(data[start:end])
            return
        if self._size > _FIELD_BYTES:
            raise BadMultipart(
                field=self._file_field, reason=f"the field '{self._field}' is longer than {_FIELD_BYTES} bytes"
            )
        self._data += data[start:end]

    def _part_end(self) -> None:
        if self._file is None:
            if len(self.fields) >= _MAX_FIELDS:
                raise BadMultipart(field=self._file_field, reason=f"more than {_MAX_FIELDS} fields")
            self.fields[self._field] = self._data.decode("utf-8", "replace")
            return
        self._file.close()
        declared = self._headers.get(b"content-type", b"application/octet-stream").decode("latin-1")
        self.files.append(ReceivedFile(Path(self._file.name), self._filename or "", declared, self._size))
        self._file = None

    def _end(self) -> None:
        self.complete = True
