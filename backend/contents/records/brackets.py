"""The elements of a JSON array of any length, one by one: found by their brackets, so that a bad one sinks no other."""

import re
from collections.abc import Iterator

from backend.contents.parsers.failures import DocumentTooComplex
from backend.contents.records.row import MAX_ROW_CHARACTERS

_MAX_DEPTH = 64
_FILL_CHARACTERS = 262_144
_LONGEST_KEY = 1_000
_SPACE = re.compile(r"[\s\ufeff]*+")
# Possessive: what is not matched at once is never tried in another way.
_PLAIN = re.compile(r'[^"{}\[\],]*+')
_NESTED = re.compile(r'[^"{}\[\]]*+')
_IN_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_KEY = re.compile(r'("(?:[^"\\]++|\\.)*+")\s*+:', re.DOTALL)


class BracketReader:
    """Walks through JSON text that comes in pieces; it holds one element and a buffer, and parses nothing.

    Raises DocumentTooComplex for what is nested deeper than any dataset.
    """

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def skip(self) -> None:
        """Passes over the character that `peek` showed."""
        self._at += 1

    def key(self) -> str | None:
        """The name that comes next in an object, its colon passed over; None if there is none."""
        while len(self._text) - self._at < _LONGEST_KEY and self._fill():
            pass
        found = _KEY.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[1][1:-1]

    def opens_objects(self) -> bool:
        """Whether a list of objects comes next. It is looked at, not passed over."""
        if self.peek() != "[":
            return False
        while len(self._text) - self._at < _LONGEST_KEY and self._fill():
            pass
        return self._text[self._at + 1 :].lstrip()[:1] == "{"

    def value(self) -> str | None:
        """The text of the value that comes next, to its last bracket; None if it is longer than a row may be."""
        start = position = self._at
        depth, in_string, is_too_long = 0, False, False
        while True:
            pattern = _IN_STRING if in_string else _NESTED if depth else _PLAIN
            found = pattern.match(self._text, position)
            assert found is not None
            position = found.end()
            mark = self._text[position : position + 1]
            if not mark or mark == "\\":
                # The text ends here, perhaps in the middle of an escape.
                if is_too_long or position - start > MAX_ROW_CHARACTERS:
                    is_too_long, start = True, position
                self._at = start
                has_more = self._fill()
                position -= start
                start = 0
                if has_more:
                    continue
                position = len(self._text)
                break
            if mark == '"':
                in_string = not in_string
            elif mark in "{[":
                depth += 1
                if depth > _MAX_DEPTH:
                    raise DocumentTooComplex(
                        f"The file is nested deeper than {_MAX_DEPTH} levels, which no dataset needs. "
                        "Upload one object a line instead (JSON lines)."
                    )
            elif depth == 0:
                break  # the end of a bare value: it belongs to what is around it
            elif mark in "}]":
                depth -= 1
                if depth == 0:
                    position += 1
                    break
            position += 1
        self._at = position
        return None if is_too_long or position - start > MAX_ROW_CHARACTERS else self._text[start:position]

    def _fill(self) -> bool:
        """Takes more text in and drops what was passed over; False at the end."""
        parts, length = [self._text[self._at :]], 0
        self._at = 0
        for piece in self._pieces:
            parts.append(piece)
            length += len(piece)
            if length >= _FILL_CHARACTERS:
                break
        self._text = "".join(parts)
        return length > 0
