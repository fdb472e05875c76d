"""The one interface to stored bytes, over obstore: file://, s3:// and memory:// by URL."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, MemoryStore, from_url

_PART_BYTES = 8 * 1024 * 1024


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class BlobNotFound(Exception):
    """The key names no stored object."""


class Storage:
    """Puts, reads and deletes objects by key. Keys use '/', and the first part is the owner's scope."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def put_bytes(self, key: str, data: bytes) -> None:
        await obstore.put_async(self._store, key, data)

    async def put_file(self, key: str, path: Path) -> None:
        """Streams a local file in; the object appears whole or not at all."""
        await obstore.put_async(self._store, key, path, chunk_size=_PART_BYTES)

    async def get_bytes(self, key: str) -> bytes:
        result = await self._get(key)
        return bytes(await result.bytes_async())

    async def stream(self, key: str) -> AsyncIterator[bytes]:
        """Yields the object's bytes part by part. Raises BlobNotFound before the first part."""
        result = await self._get(key)

        async def parts() -> AsyncIterator[bytes]:
            async for part in result.stream(min_chunk_size=1024 * 1024):
                yield bytes(part)

        return parts()

    async def save_to(self, key: str, path: Path) -> None:
        with path.open("wb") as file:
            async for part in await self.stream(key):
                file.write(part)

    async def delete(self, keys: list[str]) -> None:
        """Deletes what is there of `keys`; what is already gone is no error."""
        for key in keys:
            try:
                await obstore.delete_async(self._store, key)
            except (NotFoundError, FileNotFoundError):
                continue

    async def delete_under(self, prefix: str) -> None:
        await self.delete(await self.keys_under(prefix))

    async def keys_under(self, prefix: str) -> list[str]:
        """All keys below a prefix, a path of whole parts."""
        keys: list[str] = []
        async for batch in obstore.list(self._store, prefix=prefix):
            keys.extend(meta["path"] for meta in batch)
        return keys

    async def _get(self, key: str) -> Any:
        try:
            return await obstore.get_async(self._store, key)
        except (NotFoundError, FileNotFoundError) as error:
            raise BlobNotFound(key) from error


def open_storage(url: str) -> Storage:
    """`file:///folder`, `memory://` or `s3://bucket/prefix` (credentials from the usual AWS_* variables)."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        folder = Path(unquote(parts.path))
        folder.mkdir(parents=True, exist_ok=True)
        return Storage(LocalStore(folder, mkdir=True))
    if parts.scheme == "memory":
        return Storage(MemoryStore())
    return Storage(from_url(url))
