"""One row of an uploaded dataset in its stored form, why a row is refused, and the report on a whole file."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self

import orjson

# Of the errors of a file, the first ones are kept with their lines; all are counted.
KEPT_ERRORS = 100
MAX_ROWS = 500_000
# One row as it stands in the file, and one text of it. 100,000 characters are ten times what a training step takes.
MAX_ROW_CHARACTERS = 2_000_000
MAX_TEXT_CHARACTERS = 100_000
MAX_TURNS = 200

Turn = dict[str, str]


class RowRefused(Exception):
    """A row that becomes no example; `code` is stable, `str()` is the sentence for the user."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Row:
    """A question with its answer. `line` is where it stands: a line of JSON lines or CSV, the place in a JSON array.

    `rejected` is an answer that is worse, None if there is none. `history` holds every turn before the instruction as
    {role, content}, system prompt included; None if there is none.
    """

    line: int
    instruction: str
    input: str
    output: str
    history: list[Turn] | None = None
    rejected: str | None = None

    def to_line(self) -> bytes:
        fields: dict[str, Any] = {
            "line": self.line,
            "instruction": self.instruction,
            "input": self.input,
            "output": self.output,
        }
        if self.history:
            fields["history"] = self.history
        if self.rejected is not None:
            fields["rejected"] = self.rejected
        return orjson.dumps(fields) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        fields = orjson.loads(line)
        return cls(
            fields["line"],
            fields["instruction"],
            fields["input"],
            fields["output"],
            fields.get("history") or None,
            fields.get("rejected"),
        )


def read_rows(file: BinaryIO) -> Iterator[Row]:
    """The stored rows of a file one by one."""
    for line in file:
        yield Row.from_line(line)


@dataclass(slots=True)
class ImportReport:
    """What a file held: `rows` = `valid` + `invalid`; `shape` is that of most good rows."""

    valid: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    errors: list[dict[str, Any]] = field(default_factory=list)
    error_counts: Counter[str] = field(default_factory=Counter)

    def accept(self, shape: str) -> None:
        self.valid += 1
        self.shapes[shape] += 1

    def refuse(self, line: int, reason: RowRefused) -> None:
        self.error_counts[reason.code] += 1
        if len(self.errors) < KEPT_ERRORS:
            self.errors.append({"line": line, "code": reason.code, "message": str(reason)})

    @property
    def rows(self) -> int:
        return self.valid + self.error_counts.total()

    def to_dict(self) -> dict[str, Any]:
        main = self.shapes.most_common(1)
        return {
            "shape": main[0][0] if main else None,
            "rows": self.rows,
            "valid": self.valid,
            "invalid": self.error_counts.total(),
            "errors": self.errors,
            "error_counts": dict(self.error_counts.most_common()),
        }
