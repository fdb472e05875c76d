"""Examples as a Parquet file, written in row groups, so that memory does not grow with them."""

from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any

from backend.datasets.formats import Row

_ROWS_PER_GROUP = 10_000


class ParquetFile:
    """Writes rows to an open file; leaving the block writes the last group and the footer."""

    def __init__(self, file: IO[bytes]) -> None:
        # Loading it takes a quarter of a second and some memory, which only those pay who ask for such a file.
        import pyarrow
        from pyarrow import parquet

        self._arrow = pyarrow
        turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
        texts = ("id", "split", "instruction", "input", "output")
        fields = [pyarrow.field(name, pyarrow.string(), nullable=False) for name in texts]
        # The turns before the instruction, system prompt included; a JSON object; and the answer that is worse.
        fields += [pyarrow.field("history", pyarrow.list_(turn)), pyarrow.field("metadata", pyarrow.string())]
        fields += [pyarrow.field("rejected", pyarrow.string())]
        self._schema = pyarrow.schema(fields)
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> "ParquetFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write()
        self._writer.close()

    def add(self, rows: Sequence[Row]) -> None:
        self._waiting += [{name: getattr(row, name) for name in self._schema.names} for row in rows]
        if len(self._waiting) >= _ROWS_PER_GROUP:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(self._arrow.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting = []
