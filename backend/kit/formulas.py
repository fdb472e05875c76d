"""Cells of a CSV that a spreadsheet would run as formulas, and how they are kept from it."""

import re

# Apostrophes before it count, so that what was guarded and what began with an apostrophe can be told apart again.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def guarded(cell: str) -> str:
    """The cell with an apostrophe before it when a spreadsheet would take it for a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """What `guarded` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
