"""Lines of a page from the order of the file to that of reading: columns side by side, and cells of several lines."""

from dataclasses import dataclass, replace
from statistics import median

from backend.contents.parsers.pdf_text import Line

# Two columns whose lines stand at the same height come as lines with a gap. They are prose, not rows, if the lines on
# both sides are long and many of them begin inside a sentence.
_FEWEST_ROWS = 5
_FEWEST_CHARACTERS = 20
_BEGIN_INSIDE = 0.35
_GUTTER_SHARE = 0.6
# Points by which the left edges of the lines of one cell, or of the cells of one column, may differ.
_ALIGNED = 3.0
_SAME_HEIGHT = 0.5
_MOST_LINES_A_CELL = 12
_MOST_CELLS = 12
_LINE_PITCH = 1.6


def in_reading_order(lines: list[Line]) -> list[Line]:
    """The same text: columns one after the other, rows of a table as one line each with a tab between cells."""
    if any(line.gaps for line in lines):
        gutter = _gutter(lines)
        lines = _with_wrapped_cells(lines) if gutter is None else _by_columns(lines, gutter)
    return _with_stacked_cells(lines)


def _gutter(lines: list[Line]) -> float | None:
    """Where the page is divided into two columns of prose whose lines were taken for rows, if it is."""
    rows = [line for line in lines if len(line.gaps) == 1]
    if len(rows) < _FEWEST_ROWS:
        return None
    gutter = median((right + left) / 2 for row in rows for right, left in row.gaps)
    rows = [row for row in rows if row.gaps[0][0] < gutter < row.gaps[0][1]]
    across = sum(line.x0 < gutter < line.x1 for line in lines)
    if len(rows) < max(_FEWEST_ROWS, _GUTTER_SHARE * across):
        return None
    sides = [row.text.split("\t") for row in rows]
    for side in (0, 1):
        texts = [cells[side] for cells in sides]
        inside = sum(text[:1].islower() for text in texts)
        if median(map(len, texts)) < _FEWEST_CHARACTERS or inside < _BEGIN_INSIDE * len(texts):
            return None
    return gutter


def _by_columns(lines: list[Line], gutter: float) -> list[Line]:
    """Left before right, from one line over the whole width to the next."""
    ordered: list[Line] = []
    left: list[Line] = []
    right: list[Line] = []
    for line in lines:
        if line.x1 <= gutter:
            left.append(line)
        elif line.x0 >= gutter:
            right.append(line)
        elif len(line.gaps) == 1 and line.gaps[0][0] < gutter < line.gaps[0][1]:
            first, second = line.text.split("\t")
            hyphenated = first.endswith("-") and first[-2:-1].isalpha()
            left.append(
                replace(
                    line, text=first[:-1] if hyphenated else first, x1=line.gaps[0][0], gaps=[], hyphenated=hyphenated
                )
            )
            right.append(replace(line, text=second, x0=line.gaps[0][1], gaps=[]))
        else:
            ordered += [*left, *right, line]
            left, right = [], []
    return [*ordered, *left, *right]


def _with_wrapped_cells(lines: list[Line]) -> list[Line]:
    """Lines that go on below a cell, but not the first, of the row above them are joined to that cell."""
    joined: list[Line] = []
    for line in lines:
        row = joined[-1] if joined else None
        if row is not None and _stands_beside(row, line):
            row.text = f"{row.text}\t{line.text}"
            row.gaps = [*row.gaps, (row.x1, line.x0), *line.gaps]
            row.x1, row.hyphenated = line.x1, line.hyphenated
        elif row is not None and row.gaps and not line.gaps and 0 < row.bottom - line.y < _LINE_PITCH * line.size:
            ends = [*[right for right, _ in row.gaps[1:]], float("inf")]
            for cell, (_, left) in enumerate(row.gaps, 1):
                if abs(left - line.x0) <= _ALIGNED and line.x0 < ends[cell - 1]:
                    _append(row, cell, line)
                    break
            else:
                joined.append(line)
        else:
            joined.append(line)
    return joined


def _stands_beside(row: Line, line: Line) -> bool:
    """Whether a row goes on at the same height: a raised mark in it made PDFium begin a line."""
    if not (row.gaps or line.gaps) or row.depth or abs(row.y - line.y) > _SAME_HEIGHT:
        return False
    return line.x0 > row.x1 + min(row.size, line.size)


def _append(row: Line, cell: int, line: Line) -> None:
    cells = row.text.split("\t")
    last = cell == len(cells) - 1
    cells[cell] = _joined(cells[cell], line.text, hyphenated=row.hyphenated and last)
    row.text = "\t".join(cells)
    row.hyphenated = line.hyphenated and last
    row.depth = row.y - line.y
    row.x1 = max(row.x1, line.x1)


def _joined(text: str, more: str, *, hyphenated: bool) -> str:
    if not hyphenated:
        return f"{text} {more}"
    return text + more if more[:1].islower() else f"{text}-{more}"


@dataclass(slots=True)
class _Row:
    """Cells that the file gives one after the other, each with its lines, side by side on the page."""

    cells: list[list[Line]]

    @property
    def lefts(self) -> list[float]:
        found = []
        for cell in self.cells:
            found += [cell[0].x0, *[left for _, left in cell[0].gaps]]
        return found

    def as_line(self) -> Line:
        texts = []
        for cell in self.cells:
            text, hyphenated = "", False
            for line in cell:
                text = _joined(text, line.text, hyphenated=hyphenated) if text else line.text
                hyphenated = line.hyphenated
            texts.append(text)
        lines = [line for cell in self.cells for line in cell]
        top, bottom = max(line.y for line in lines), min(line.bottom for line in lines)
        row = replace(
            self.cells[0][0],
            text="\t".join(texts),
            x1=max(line.x1 for line in lines),
            y=top,
            gaps=[(left, left) for left in self.lefts[1:]],
            hyphenated=False,
        )
        row.depth = top - bottom
        return row


def _with_stacked_cells(lines: list[Line]) -> list[Line]:
    """A row whose cells have several lines each comes cell by cell: down, then up again and to the right.

    So do columns of prose; only what stands beside another row of the same columns is taken for a row.
    """
    parts: list[Line | _Row] = []
    at = 0
    while at < len(lines):
        if parts and _goes_up(parts[-1], lines[at]):
            row, stop = _row_at(parts, lines, at)
            if row is not None:
                del parts[-len(row.cells[0]) :]
                parts.append(row)
                at = stop
                continue
        parts.append(lines[at])
        at += 1
    if not any(isinstance(part, _Row) for part in parts):
        return lines
    ordered: list[Line] = []
    for index, part in enumerate(parts):
        if isinstance(part, Line):
            ordered.append(part)
        elif any(_same_columns(part, parts[near]) for near in (index - 1, index + 1) if 0 <= near < len(parts)):
            ordered.append(part.as_line())
        else:
            ordered += [line for cell in part.cells for line in cell]
    return ordered


def _goes_up(previous: Line | _Row, line: Line) -> bool:
    return isinstance(previous, Line) and line.y > previous.bottom + 0.3 * line.size and line.x0 > previous.x0


def _row_at(parts: list[Line | _Row], lines: list[Line], at: int) -> tuple[_Row | None, int]:
    """The row whose second cell begins at `at`; its first cell is what was read last."""
    first: list[Line] = []
    for part in reversed(parts):
        if not isinstance(part, Line) or len(first) > _MOST_LINES_A_CELL:
            break
        if first and not (
            abs(part.x0 - first[0].x0) <= _ALIGNED and 0 < part.bottom - first[0].y < _LINE_PITCH * part.size
        ):
            break
        first.insert(0, part)
    cells = [first]
    while at < len(lines) and len(cells) < _MOST_CELLS:
        cell = _cell_at(lines, at)
        before = cells[-1]
        right = max(line.x1 for line in before)
        top, bottom = max(line.y for line in first), min(line.bottom for line in first)
        if cell[0].x0 < right or not bottom - first[0].size <= cell[0].y <= top + first[0].size:
            break
        cells.append(cell)
        at += len(cell)
    if len(cells) < 2 or any(len(cell) > _MOST_LINES_A_CELL for cell in cells):
        return None, at
    return _Row(cells), at


def _cell_at(lines: list[Line], at: int) -> list[Line]:
    cell = [lines[at]]
    for line in lines[at + 1 : at + 2 + _MOST_LINES_A_CELL]:
        below = cell[-1].bottom - line.y
        if line.gaps or abs(line.x0 - cell[0].x0) > _ALIGNED or not 0 < below < _LINE_PITCH * line.size:
            break
        cell.append(line)
    return cell


def _same_columns(row: _Row, other: Line | _Row) -> bool:
    lefts = other.lefts if isinstance(other, _Row) else [other.x0, *[left for _, left in other.gaps]]
    if len(lefts) < 2 or abs(lefts[0] - row.lefts[0]) > _ALIGNED:
        return False
    return any(abs(left - own) <= _ALIGNED for left in lefts[1:] for own in row.lefts[1:])
