"""Stored files as answers that a client can take up again where they broke off (RFC 9110, 13.1.5 and 14)."""

import re
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Header
from fastapi.responses import StreamingResponse

from backend.kit.errors import DomainError
from backend.storage import BlobNotFound, Storage
from backend.training.errors import ExportNotFound
from backend.training.models import Artifact

_MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown; charset=utf-8", ".zip": "application/zip"}
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
DOWNLOAD_DOCS: dict[int | str, dict[str, Any]] = {
    200: {"content": _BINARY},
    206: {"content": _BINARY, "description": "The bytes that Range asks for"},
}
_RANGE = re.compile(r"bytes=(?:(\d{1,19})-(\d{1,19})?|-(\d{1,19}))")

RangeHeader = Annotated[str | None, Header(alias="Range", description="One range of bytes, as `bytes=1000-`.")]
IfRangeHeader = Annotated[
    str | None, Header(alias="If-Range", description="The ETag of what is there already: else the whole file comes.")
]


class RangeNotSatisfiable(DomainError):
    status = 416
    code = "RANGE_NOT_SATISFIABLE"
    template = "The file has {size_bytes} bytes, and none in that range. Ask for a range that begins before its end."

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes=size_bytes)
        self.headers = {"Content-Range": f"bytes */{size_bytes}"}


async def download(
    storage: Storage, artifact: Artifact, range_header: str | None, if_range: str | None
) -> StreamingResponse:
    """The file, or the range of it. Raises RangeNotSatisfiable, ExportNotFound when the stored file is gone."""
    etag = f'"{artifact.sha256}"'
    size = artifact.size_bytes
    # A part of a file that is another one by now would be put behind the wrong beginning.
    wanted = range_header if if_range is None or if_range == etag else None
    span = span_of(wanted, size)
    try:
        parts = await storage.stream(artifact.file_key, span)
    except BlobNotFound as error:
        raise ExportNotFound(artifact.filename) from error
    first, end = span or (0, size)
    name = artifact.filename.rsplit("/", 1)[-1]
    headers = {
        "Content-Length": str(end - first),
        # An export's names are plain ASCII without quotes, which every client understands.
        "Content-Disposition": f'attachment; filename="{quote(name)}"',
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
        "ETag": etag,
    }
    if span is not None:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    suffix = name[name.rfind(".") :]
    return StreamingResponse(
        parts,
        status_code=206 if span is not None else 200,
        media_type=_MEDIA_TYPES.get(suffix, "application/octet-stream"),
        headers=headers,
    )


def span_of(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte that a Range header asks for, and the one after the last; None for the whole file.

    What is no single range of bytes is ignored, as the standard allows. Raises RangeNotSatisfiable.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None:
        return None
    first, last, suffix = found[1], found[2], found[3]
    if suffix is not None:
        count = min(int(suffix), size)
        if count == 0:
            raise RangeNotSatisfiable(size)
        return size - count, size
    if last is not None and int(last) < int(first):
        return None
    if int(first) >= size:
        raise RangeNotSatisfiable(size)
    return int(first), min(int(last) + 1, size) if last is not None else size
