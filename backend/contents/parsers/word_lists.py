"""Markers of list items in a Word document: what its numbering says of them, counted as Word counts."""

from typing import Any

from docx.oxml.ns import qn

BULLET = "-"

_MOST = 100_000


class Numbering:
    """The numberings of a document, and where each has got to."""

    def __init__(self, root: Any) -> None:
        """`root` is the element `w:numbering`, None where a document has none."""
        self._lists: dict[int, Any] = {}
        self._formats: dict[tuple[int, int], tuple[str, int]] = {}
        self._counts: dict[int, dict[int, int]] = {}
        if root is None:
            return
        abstract = {element.get(qn("w:abstractNumId")): element for element in root.iter(qn("w:abstractNum"))}
        for element in root.iter(qn("w:num")):
            number, of = element.get(qn("w:numId")), element.find(qn("w:abstractNumId"))
            if number is not None and number.isdigit() and of is not None and len(self._lists) < _MOST:
                self._lists[int(number)] = abstract.get(of.get(qn("w:val")))

    def marker(self, number: int | None, level: int) -> str:
        """The marker of the next item of list `number` at `level` (from 1): `3.`, `b.`, or `-` for a bullet."""
        if number is None or self._lists.get(number) is None:
            return BULLET
        kind, start = self._format(number, level)
        if kind in {"bullet", "none"}:
            return BULLET
        counts = self._counts.setdefault(number, {})
        counts[level] = counts.get(level, start - 1) + 1
        # What is deeper begins again under the next item.
        for deeper in [found for found in counts if found > level]:
            del counts[deeper]
        return f"{_written(counts[level], kind)}."

    def _format(self, number: int, level: int) -> tuple[str, int]:
        known = self._formats.get((number, level))
        if known is None:
            known = ("bullet", 1)
            for element in self._lists[number].iter(qn("w:lvl")):
                if element.get(qn("w:ilvl")) == str(level - 1):
                    kind = element.find(qn("w:numFmt"))
                    first = integer(element.find(qn("w:start")))
                    known = (kind.get(qn("w:val")) or "decimal" if kind is not None else "decimal", first or 1)
                    break
            self._formats[number, level] = known
        return known


def integer(element: Any) -> int | None:
    """The value of an element such as `w:ilvl`; None if it has none or a wild one."""
    value = element.get(qn("w:val")) if element is not None else None
    return int(value) if value is not None and value.lstrip("-").isdecimal() and len(value) < 10 else None


def _written(count: int, kind: str) -> str:
    if kind.endswith("Letter") and 1 <= count <= 26:
        return chr((65 if kind.startswith("upper") else 97) + count - 1)
    if kind.endswith("Roman") and 1 <= count < 400:
        return _roman(count) if kind.startswith("upper") else _roman(count).lower()
    return str(count)


def _roman(count: int) -> str:
    signs = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
    text = ""
    for value, sign in signs:
        text += sign * (count // value)
        count %= value
    return text
