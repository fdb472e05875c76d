"""All examples of a dataset or of one of its versions as a stream, in memory that does not grow with them."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import IO, Any, Literal

import orjson
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets import formats
from backend.datasets.formats import Format, Row
from backend.datasets.parquet import ParquetFile
from backend.datasets.provider_formats import TrainingFile
from backend.kit.db import fetch

Split = Literal["train", "eval", "all"]
# Opens a transaction to read in: `Database.transaction`, or `reading` of a job.
Open = Callable[[], AbstractAsyncContextManager[AsyncSession]]
# Rows of one SELECT. Between two of them no connection is held, so a slow reader is in nobody's way.
BATCH = 1000
_READ_BYTES = 256 * 1024

# As text what leaves as text.
_COLUMNS = "public_id::text, split, instruction, input, output, history::text, is_valid"
_LIVE = f"""
SELECT id, {_COLUMNS}, invalid_reason, meta::text, rejected FROM examples
WHERE dataset_id = $1 AND id > $2 AND split = ANY($3) AND (is_valid OR $4)
ORDER BY id LIMIT $5
"""  # noqa: S608  (constants of this file)
# Each half is cut to the batch before they are put together.
_FROZEN = f"""
(SELECT id, {_COLUMNS}, invalid_reason, meta::text, rejected FROM examples
 WHERE dataset_id = $1 AND id > $2 AND split = ANY($3) AND (is_valid OR $4) AND from_version <= $6
 ORDER BY id LIMIT $5)
UNION ALL
(SELECT example_id, {_COLUMNS}, NULL, meta::text, rejected FROM retired_examples
 WHERE dataset_id = $1 AND example_id > $2 AND split = ANY($3) AND (is_valid OR $4)
   AND from_version <= $6 AND until_version > $6
 ORDER BY example_id LIMIT $5)
ORDER BY 1 LIMIT $5
"""  # noqa: S608  (constants of this file)


async def rows(
    open: Open, dataset_id: int, *, split: Split, version: int | None = None, include_invalid: bool = False
) -> AsyncIterator[Sequence[Row]]:
    """Batches of examples in the order in which they were made; previews are never among them.

    With a `version` they are exactly those that were frozen. Without one each batch is as it is when it is read.
    """
    splits = ["train", "eval"] if split == "all" else [split]
    last = 0
    while True:
        values: list[Any] = [dataset_id, last, splits, include_invalid, BATCH]
        async with open() as session:
            if version is None:
                found = await fetch(session, _LIVE, *values)
            else:
                found = await fetch(session, _FROZEN, *values, version)
        if found:
            last = found[-1][0]
            yield [_row(record) for record in found]
        if len(found) < BATCH:
            return


async def stream(
    open: Open,
    dataset_id: int,
    format: Format,
    *,
    split: Split,
    version: int | None = None,
    include_invalid: bool = False,
) -> AsyncIterator[bytes]:
    """The bytes of a file in the given format. Closing it ends the reading."""
    if header := formats.header_of(format):
        yield header
    async for batch in rows(open, dataset_id, split=split, version=version, include_invalid=include_invalid):
        yield formats.encode(batch, format)


async def write_training_file(
    open: Open, dataset_id: int, file: IO[bytes], shaped: TrainingFile, *, split: Split, version: int | None = None
) -> None:
    """Writes the examples as a provider takes them. Raises ExportLimits when it would not take the whole."""
    async for batch in rows(open, dataset_id, split=split, version=version):
        await asyncio.to_thread(_write, file, shaped.encode, batch)
    shaped.require_fit()


async def training_file(
    open: Open, dataset_id: int, shaped: TrainingFile, *, split: Split, version: int | None = None
) -> AsyncIterator[bytes]:
    """The bytes of a provider's training file, checked before the first of them. Raises ExportLimits."""

    async def write(file: IO[bytes]) -> None:
        await write_training_file(open, dataset_id, file, shaped, split=split, version=version)

    return await _spooled(write)


async def parquet_file(
    open: Open, dataset_id: int, *, split: Split, version: int | None = None
) -> AsyncIterator[bytes]:
    """The bytes of a Parquet file."""

    async def write(file: IO[bytes]) -> None:
        with ParquetFile(file) as written:
            async for batch in rows(open, dataset_id, split=split, version=version):
                await asyncio.to_thread(written.add, batch)

    return await _spooled(write)


async def _spooled(write: Callable[[IO[bytes]], Awaitable[None]]) -> AsyncIterator[bytes]:
    """What is written to a file without a name, once it is whole; the file is gone when its reader leaves."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by whoever reads it)
    try:
        await write(file)
    except BaseException:
        file.close()
        raise
    return _read_back(file)


async def _read_back(file: IO[bytes]) -> AsyncIterator[bytes]:
    try:
        file.seek(0)
        while part := await asyncio.to_thread(file.read, _READ_BYTES):
            yield part
    finally:
        file.close()


def _write(file: IO[bytes], encode: Callable[[Sequence[Row]], bytes], batch: Sequence[Row]) -> None:
    file.write(encode(batch))


def _row(record: Sequence[Any]) -> Row:
    row = Row._make(record[1:])
    return row if row.history is None else row._replace(history=orjson.loads(record[6]))
