"""The one interface to stored bytes, over obstore: file://, s3:// and memory:// by URL."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, MemoryStore, from_url

from backend.kit.errors import DomainError

log = logging.getLogger(__name__)

_PART_BYTES = 8 * 1024 * 1024


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored object: its key, and when it was last written."""

    key: str
    written_at: datetime


class BlobNotFound(Exception):
    """The key names no stored object."""


class StorageUnavailable(DomainError):
    status = 503
    code = "STORAGE_UNAVAILABLE"
    template = "The file storage does not answer. Try again in a moment."
    retryable = True


class Storage:
    """Puts, reads and deletes objects by key. Keys use '/', and the first part is the owner's scope.

    Every method raises StorageUnavailable when the store fails.
    """

    def __init__(self, store: Any, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    async def put_bytes(self, key: str, data: bytes) -> None:
        with _translated():
            await obstore.put_async(self._store, key, data)

    async def put_file(self, key: str, path: Path) -> None:
        """Streams a local file in; the object appears whole or not at all."""
        with _translated():
            await obstore.put_async(self._store, key, path, chunk_size=_PART_BYTES)

    async def get_bytes(self, key: str) -> bytes:
        result = await self._get(key)
        with _translated():
            return bytes(await result.bytes_async())

    async def stream(self, key: str, span: tuple[int, int] | None = None) -> AsyncIterator[bytes]:
        """Yields the object's bytes part by part, or those of `span` (first byte, and the one after the last).

        Raises BlobNotFound before the first part.
        """
        result = await self._get(key, span)

        async def parts() -> AsyncIterator[bytes]:
            with _translated():
                async for part in result.stream(min_chunk_size=1024 * 1024):
                    yield bytes(part)

        return parts()

    async def save_to(self, key: str, path: Path) -> None:
        """Writes the object to a local file. Raises BlobNotFound, and leaves no file then."""
        parts = await self.stream(key)
        with path.open("wb") as file:
            async for part in parts:
                file.write(part)

    async def delete(self, keys: Iterable[str]) -> None:
        """Deletes what is there of `keys`; what is already gone is no error."""
        for key in keys:
            with _translated(), suppress(NotFoundError, FileNotFoundError):
                await obstore.delete_async(self._store, key)

    async def delete_under(self, prefix: str) -> None:
        await self.delete([blob.key for blob in await self.list_under(prefix)])

    async def list_under(self, prefix: str) -> list[Blob]:
        """All objects below a prefix, which is a path of whole parts."""
        blobs: list[Blob] = []
        with _translated():
            async for batch in obstore.list(self._store, prefix=prefix):
                blobs.extend(Blob(meta["path"], meta["last_modified"]) for meta in batch)
        return blobs

    async def delete_unfinished(self, prefix: str, before: datetime) -> int:
        """Deletes what processes left below a prefix that were killed while they wrote, last touched before a time.

        Such parts are in no listing. Those of a bucket are for its own lifecycle rule (AbortIncompleteMultipartUpload).
        """
        if self._folder is None:
            return 0
        return await asyncio.to_thread(_delete_parts, self._folder / prefix, before.timestamp())

    async def _get(self, key: str, span: tuple[int, int] | None = None) -> Any:
        try:
            with _translated():
                return await obstore.get_async(self._store, key, options={"range": span} if span else None)
        except (NotFoundError, FileNotFoundError) as error:
            raise BlobNotFound(key) from error


def _delete_parts(folder: Path, before: float) -> int:
    """A file is written under its name with `#` and a number, and renamed when it is whole."""
    count = 0
    for path in folder.rglob("*#*"):
        with suppress(OSError):
            if path.name.rpartition("#")[2].isdigit() and path.stat().st_mtime < before:
                path.unlink()
                count += 1
    return count


@contextmanager
def _translated() -> Iterator[None]:
    """The store's own errors as StorageUnavailable; a missing object stays what it is."""
    try:
        yield
    except NotFoundError:
        raise
    except BaseError as error:
        log.error("storage failed: %s", error)
        raise StorageUnavailable() from error


def open_storage(url: str) -> Storage:
    """`file:///folder`, `memory://` or `s3://bucket/prefix` (credentials from the usual AWS_* variables)."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        folder = Path(unquote(parts.path))
        folder.mkdir(parents=True, exist_ok=True)
        return Storage(LocalStore(folder, mkdir=True), folder)
    if parts.scheme == "memory":
        return Storage(MemoryStore())
    return Storage(from_url(url))
