"""The texts of a row, cleaned and bounded, and what messages may show of a file."""

from typing import Any

from backend.contents.records.row import MAX_TEXT_CHARACTERS, RowRefused
from backend.kit.text import storable

_LONGEST_SHOWN = 60


def required_text(where: str, value: Any) -> str:
    """The text without what a database cannot hold, its line ends made `\\n`, its edges trimmed.

    Raises RowRefused: empty_field, wrong_type, too_long.
    """
    if value is None:
        raise RowRefused("empty_field", f"{where} is empty.")
    if not isinstance(value, str):
        raise RowRefused("wrong_type", f"{where} must be text, not {type_name(value)}.")
    text = str(storable(value)).replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise RowRefused("empty_field", f"{where} is empty.")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise RowRefused("too_long", f"{where} has {len(text):,} characters; {MAX_TEXT_CHARACTERS:,} are the most.")
    return text


def type_name(value: Any) -> str:
    """What a message calls the JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, (int, float)):
        return "a number"
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "text"


def cut_short(text: str) -> str:
    """A piece of the file as a message may show it."""
    plain = " ".join(str(storable(text[: 4 * _LONGEST_SHOWN])).split())
    return plain if len(plain) <= _LONGEST_SHOWN else plain[:_LONGEST_SHOWN] + "..."
