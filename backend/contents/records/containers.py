"""The objects of a file, whatever holds them: JSON lines, a JSON array, an array inside an object, or CSV."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from backend.contents.parsers.decoding import read_lines
from backend.contents.parsers.failures import DocumentBroken, EmptyDocument
from backend.contents.records import tables
from backend.contents.records.brackets import BracketReader
from backend.contents.records.chat import CHAT_COLUMNS
from backend.contents.records.mapping import column_of
from backend.contents.records.preferences import PREFERENCE_COLUMNS
from backend.contents.records.row import MAX_ROW_CHARACTERS, RowRefused
from backend.contents.records.texts import cut_short, type_name
from backend.contents.types import CSV, TEXT

# The number of a row (see Row.line), and its object or the reason why there is none.
Found = tuple[int, dict[str, Any] | RowRefused]

_PIECES_PER_STEP = 20_000
_OPENING = ("{", "[", ",", ":")
# Lists of objects that are part of one row, not the rows of a file.
_INSIDE_A_ROW = frozenset(
    {*CHAT_COLUMNS, *PREFERENCE_COLUMNS, "history", "prompt", "completion", "answers", "tools", "functions"}
)


def read_objects(path: Path, mime_type: str, start_step: Callable[[], None]) -> Iterator[Found]:
    """Every row of the file in order; it holds one of them and a buffer. `start_step` is called every now and then.

    Raises EmptyDocument, DocumentBroken, DocumentTooComplex for a file that has no rows to speak of.
    """

    def pieces() -> Iterator[str]:
        for count, piece in enumerate(read_lines(path)):
            if count % _PIECES_PER_STEP == 0:
                start_step()
            yield piece

    opening = next((mark for piece in pieces() if (mark := piece.lstrip(" \t\n\ufeff")[:1])), "")
    if not opening:
        raise EmptyDocument
    first = [text for _, text in islice(_filled_lines(pieces()), 2)]
    delimiter = tables.delimiter_of(first[0] or "")
    if mime_type == CSV and (opening not in {"{", "["} or delimiter is not None):
        yield from tables.read_table(pieces(), delimiter or ",")
    elif mime_type == TEXT and opening not in {"{", "["} and delimiter is not None:
        yield from tables.read_table(pieces(), delimiter)
    elif opening == "[":
        yield from _read_array(pieces())
    elif _is_one_object(first):
        yield from _read_object(pieces)
    else:
        yield from _read_json_lines(pieces())


def _is_one_object(first: list[str | None]) -> bool:
    """Whether the file is one JSON object, by its first lines; None stands for a line that is too long to be a row."""
    if first[0] is None:
        return len(first) == 1 or not _is_json(first[1])
    if _is_json(first[0]):
        return len(first) == 1
    # A line that leaves a bracket open at its end is the beginning of something laid out over lines.
    return first[0].rstrip().endswith(_OPENING)


def _is_json(line: str | None) -> bool:
    try:
        json.loads(line or "")
    except (ValueError, RecursionError):
        return False
    return True


def _read_json_lines(pieces: Iterator[str]) -> Iterator[Found]:
    for number, line in _filled_lines(pieces):
        yield number, _too_long() if line is None else _parse(line)


def _read_array(pieces: Iterator[str]) -> Iterator[Found]:
    reader = BracketReader(pieces)
    reader.peek()
    reader.skip()
    last = 0
    for last, found in _elements(reader):
        yield last, found
    if reader.peek():
        yield last + 1, RowRefused("bad_json", "What comes after the end of the array is not read. Remove it.")


def _elements(reader: BracketReader) -> Iterator[Found]:
    """The elements of an array whose bracket was passed over, to its end."""
    index = 0
    while True:
        mark = reader.peek()
        if mark == ",":
            reader.skip()
            continue
        if mark == "]":
            reader.skip()
            return
        if mark == "":
            yield index + 1, RowRefused("bad_json", "The file ends before the array does. Add what is missing.")
            return
        if mark == "}":
            reader.skip()
            yield index + 1, RowRefused("bad_json", "There is a '}' that closes nothing before this row. Remove it.")
            continue
        index += 1
        text = reader.value()
        yield index, _too_long() if text is None else _parse(text)


def _read_object(pieces: Callable[[], Iterator[str]]) -> Iterator[Found]:
    """The one list of objects inside an object; without one, the object itself is the only row."""
    reader = BracketReader(pieces())
    reader.peek()
    reader.skip()
    name = None
    while reader.peek() == '"':
        key = reader.key()
        if key is None:
            break
        if column_of(key[:100]) not in _INSIDE_A_ROW and reader.opens_objects():
            if name is not None:
                raise DocumentBroken(
                    f"The object holds several lists of rows ('{cut_short(name)}' and '{cut_short(key)}'). "
                    "Upload each in a file of its own."
                )
            name = key
            reader.skip()
            yield from _elements(reader)
        else:
            reader.peek()
            reader.value()
        if reader.peek() == ",":
            reader.skip()
    if name is None:
        text = _whole(pieces())
        yield 1, _too_long() if text is None else _parse(text)


def _whole(pieces: Iterator[str]) -> str | None:
    parts, length = [], 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if length > MAX_ROW_CHARACTERS:
            return None
    return "".join(parts)


def _filled_lines(pieces: Iterator[str]) -> Iterator[tuple[int, str | None]]:
    """The lines that are not blank, with their numbers from 1; None for one that is longer than a row may be."""
    number, length = 1, 0
    parts: list[str] = []
    for piece in pieces:
        length += len(piece)
        if length <= MAX_ROW_CHARACTERS:
            parts.append(piece)
        else:
            parts.clear()
        if piece.endswith("\n"):
            line = "".join(parts)
            if length > MAX_ROW_CHARACTERS or not line.isspace():
                yield number, line if length <= MAX_ROW_CHARACTERS else None
            number, length = number + 1, 0
            parts.clear()
    if length:
        line = "".join(parts)
        if length > MAX_ROW_CHARACTERS or not line.isspace():
            yield number, line if length <= MAX_ROW_CHARACTERS else None


def _parse(text: str) -> dict[str, Any] | RowRefused:
    try:
        # Not strict: a tab or line feed inside a string does no harm.
        value = json.loads(text.strip("\ufeff"), strict=False, object_pairs_hook=_object)
    except RowRefused as refused:
        return refused
    except json.JSONDecodeError as error:
        return RowRefused("bad_json", f"Not valid JSON: {error.msg} at character {error.pos + 1}.")
    except RecursionError:
        return RowRefused("bad_json", "Not usable JSON: it is nested too deeply.")
    except ValueError:
        return RowRefused("bad_json", "Not usable JSON: it holds a number of thousands of digits.")
    if isinstance(value, dict):
        return value
    return RowRefused("not_an_object", f"A row must be an object with named fields, not {type_name(value)}.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowRefused("duplicate_key", f"The field '{cut_short(twice)}' is there twice. Keep one of them.")
    return found


def _too_long() -> RowRefused:
    return RowRefused("too_long", f"The row is longer than {MAX_ROW_CHARACTERS:,} characters. Shorten it.")
