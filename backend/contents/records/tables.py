"""CSV with any of its delimiters: rows under the names of the header, each with the line that it begins on."""

import csv
import json
import re
from collections.abc import Iterator
from typing import Any

from backend.contents.records.chat import CHAT_COLUMNS
from backend.contents.records.mapping import column_of, known_columns
from backend.contents.records.row import MAX_ROW_CHARACTERS, MAX_TEXT_CHARACTERS, RowRefused
from backend.contents.records.texts import cut_short
from backend.kit.formulas import unguarded

_DELIMITERS = (",", ";", "\t", "|")
_DECLARED = re.compile(r"\ufeff?sep=(.)\s*\Z", re.IGNORECASE)
_LONGEST_HEADER = 32_768
# Cells of these columns may hold JSON.
_STRUCTURED = frozenset({*CHAT_COLUMNS, "answers", "history", "tools", "functions"})


def delimiter_of(header: str) -> str | None:
    """What separates the columns of a header; None if no delimiter gives two names that mean something here."""
    declared = _DECLARED.match(header)
    if declared:
        return declared[1]
    if len(header) > _LONGEST_HEADER:
        return None
    scores = {delimiter: known_columns(_cells(header, delimiter)) for delimiter in _DELIMITERS}
    best = max(_DELIMITERS, key=lambda delimiter: scores[delimiter])
    return best if scores[best] > 1 or any(column_of(name) in CHAT_COLUMNS for name in _cells(header, best)) else None


def read_table(pieces: Iterator[str], delimiter: str) -> Iterator[tuple[int, dict[str, Any] | RowRefused]]:
    """The rows under the header, which is the first line that is not blank; their cells are texts."""
    # One more than a text may have, so that its own message comes first.
    csv.field_size_limit(4 * MAX_TEXT_CHARACTERS)
    lines = _Lines(pieces)
    reader = csv.reader(lines, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        lines.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _RowTooLong:
            yield lines.first, RowRefused("too_long", f"The row is longer than {MAX_ROW_CHARACTERS:,} characters.")
            continue
        except csv.Error as error:
            yield lines.first, _broken(error)
            continue
        if not any(cell.strip() for cell in cells) or (header is None and _DECLARED.match(delimiter.join(cells))):
            continue
        if header is None:
            header = cells
        else:
            yield lines.first, _under(header, cells)


class _RowTooLong(Exception):
    pass


class _Lines:
    """Whole lines for the csv module, which bounds a cell but neither a line nor a row."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._number = 0
        self._taken = 0
        self.first = 1

    def begin_row(self) -> None:
        self.first = self._number + 1
        self._taken = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._pieces)
        self._taken += len(line)
        if not line.endswith("\n"):
            parts = [line]
            for piece in self._pieces:
                self._taken += len(piece)
                if self._taken <= MAX_ROW_CHARACTERS:
                    parts.append(piece)
                if piece.endswith("\n"):
                    break
            line = "".join(parts)
        self._number += 1
        if self._taken > MAX_ROW_CHARACTERS:
            raise _RowTooLong
        return line


def _cells(header: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([header.rstrip("\n")], delimiter=delimiter), [])
    except csv.Error:
        return []


def _broken(error: csv.Error) -> RowRefused:
    if "field limit" in str(error):
        return RowRefused(
            "too_long", "A cell has no end within the limit. Close the quotation mark that it begins with, or cut it."
        )
    return RowRefused("bad_csv", f"Not valid CSV: {error}.")


def _under(header: list[str], cells: list[str]) -> dict[str, Any] | RowRefused:
    if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
        return RowRefused(
            "bad_csv",
            f"The row has {len(cells)} cells under {len(header)} names. Put cells that hold the delimiter in quotes.",
        )
    fields: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=False):
        if name in fields:
            return RowRefused("duplicate_key", f"The column '{cut_short(name)}' is there twice. Keep one of them.")
        fields[name] = _structured(name, unguarded(cell))
    return fields


def _structured(name: str, cell: str) -> Any:
    if cell[:1] in {"[", "{"} and len(name) < 100 and column_of(name) in _STRUCTURED:
        try:
            return json.loads(cell, strict=False)
        except (ValueError, RecursionError):
            return cell
    return cell
