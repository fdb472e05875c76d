"""All that is kept about a user, as one zip that is written while it is sent."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import orjson
from sqlalchemy import Column, ColumnElement, MetaData, Table, select, tuple_

from backend.kit.db import Database
from backend.kit.models import Base
from backend.storage import BlobNotFound, Storage

# What opens something, or would help to: it is of no use to its owner. What is derived from it and shown stays.
SECRETS = {
    "users": {"password_hash"},
    "user_sessions": {"refresh_digest"},
    "one_use_tokens": {"digest"},
    "personal_access_tokens": {"digest"},
    "provider_keys": {"ciphertext"},
}
_ROWS_AT_ONCE = 100
_IDS_AT_ONCE = 5000
_README = """All that this service keeps about you.

rows/TABLE.jsonl  one line of JSON for each row; passwords, tokens and keys are left out
files.jsonl       one line for each stored file: name in this archive, bytes, time of writing
files/...         the stored files themselves: uploads, texts, trained models, exports

The checkpoints of a training that is running are left out. Its model is in the archive once it has ended.
"""
# What a training goes on from when its worker is lost: many times its model, and gone with its end.
_CHECKPOINTS = "/checkpoints/"


def owned_tables(metadata: MetaData, user_id: int) -> "Iterator[tuple[Table, ColumnElement[bool]]]":
    """Each table that holds rows of users, with the condition that picks this user's."""
    for table in metadata.sorted_tables:
        condition = _ownership(table, user_id)
        if condition is not None:
            yield table, condition


async def stream_archive(db: Database, storage: Storage, user_id: int, folders: Sequence[str]) -> AsyncIterator[bytes]:
    """Yields the bytes of a zip with all rows of the user and all files below `folders`, in constant memory.

    It takes as long as its reader: each piece is read in a transaction of its own.
    """
    sink = _Sink()
    with ZipFile(sink, "w", ZIP_DEFLATED) as archive:
        archive.writestr(_entry("README.txt"), _README)
        for table, condition in owned_tables(Base.metadata, user_id):
            with archive.open(_entry(f"rows/{table.name}.jsonl"), "w", force_zip64=True) as entry:
                async for lines in _rows(db, table, condition):
                    await asyncio.to_thread(entry.write, lines)
                    yield sink.take()
        listed: list[bytes] = []
        for folder in folders:
            for blob in await storage.list_under(folder):
                if _CHECKPOINTS in blob.key:
                    continue
                size = 0
                try:
                    parts = await storage.stream(blob.key)
                except BlobNotFound:  # deleted a moment ago
                    continue
                name = f"files/{blob.key}"
                # Stored as it is: uploads and models are compressed already, or nearly random.
                with archive.open(_entry(name, ZIP_STORED), "w", force_zip64=True) as entry:
                    async for part in parts:
                        await asyncio.to_thread(entry.write, part)
                        size += len(part)
                        yield sink.take()
                listed.append(_line({"name": name, "bytes": size, "written_at": blob.written_at}))
        archive.writestr(_entry("files.jsonl"), b"".join(listed))
    yield sink.take()


async def _rows(db: Database, table: Table, condition: "ColumnElement[bool]") -> AsyncIterator[bytes]:
    """JSON lines of the chosen rows. First their keys alone, so that no batch searches for its rows again."""
    keys = list(table.primary_key.columns)
    found = await _keys(db, keys, condition)
    shown = [column for column in table.columns if column.name not in SECRETS.get(table.name, set())]
    for start in range(0, len(found[0]), _ROWS_AT_ONCE):
        batch = list(zip(*[values[start : start + _ROWS_AT_ONCE] for values in found], strict=True))
        async with db.transaction() as session:
            rows = (await session.execute(select(*shown).where(tuple_(*keys).in_(batch)).order_by(*keys))).mappings()
            lines = [_line(dict(row)) for row in rows]
        yield b"".join(lines)


async def _keys(db: Database, keys: "list[Column[int]]", condition: "ColumnElement[bool]") -> "list[array[int]]":
    """The primary keys of the chosen rows in order, one array for each column of the key."""
    found: list[array[int]] = [array("q") for _ in keys]
    async with db.transaction() as session:
        rows = await session.stream(select(*keys).where(condition).order_by(*keys))
        async for partition in rows.partitions(_IDS_AT_ONCE):
            for values, column in zip(found, zip(*partition, strict=True), strict=True):
                values.extend(column)
    return found


def _ownership(table: Table, user_id: int) -> "ColumnElement[bool] | None":
    """By the user's id in the row, or else by the first row that it must refer to and that is a user's."""
    if table.name == "users":
        return table.c.id == user_id
    if "user_id" in table.c:
        return table.c.user_id == user_id
    for column in table.columns:
        for key in column.foreign_keys:
            if column.nullable or key.column.table is table:
                continue
            parents = _ownership(key.column.table, user_id)
            if parents is not None:
                return column.in_(select(key.column).where(parents))
    return None


def _entry(name: str, compression: int = ZIP_DEFLATED) -> ZipInfo:
    entry = ZipInfo(name, datetime.now(UTC).timetuple()[:6])
    entry.compress_type = compression
    entry.external_attr = 0o600 << 16
    return entry


def _line(row: dict[str, object]) -> bytes:
    return orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


class _Sink:
    """Where ZipFile writes to: it keeps the bytes until they are taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """ZipFile asks for it; there is nothing to do."""

    def close(self) -> None:
        """As flush."""

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
