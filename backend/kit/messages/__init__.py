"""The French sentences of fr.toml; the English ones stand with the errors that they describe."""

import logging
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Any, Final

log = logging.getLogger(__name__)

_FILE: Final = Path(__file__).with_name("fr.toml")
# How pydantic begins what it says of an e-mail address; its type is that of any other error of a value.
_EMAIL: Final = "value is not a valid email address"


class _FrenchFormatter(Formatter):
    """Writes lists as words and fractions with a comma."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, (list, tuple)):
            return ", ".join(str(item) for item in value)
        text = str(super().format_field(value, format_spec))
        return text.replace(".", ",") if isinstance(value, float) else text


_FORMATTER: Final = _FrenchFormatter()


def french_sentence(code: str, context: Mapping[str, Any]) -> str | None:
    """The sentence of an error code with the fields of its context; None when there is none that fits."""
    return _first_that_fits(load()["errors"].get(code, ()), context)


def french_advice(code: str, context: Mapping[str, Any]) -> str | None:
    """`context.advice` of an error code, where the English error has one."""
    return _first_that_fits(load()["advice"].get(code, ()), context)


def french_problem(kind: str, message: str, values: Mapping[str, Any]) -> str | None:
    """What is wrong with one field, without the field's name and without a full stop.

    `kind`, `message` and `values` are pydantic's type, msg and ctx. None where only English is known.
    """
    if kind == "value_error":
        kind = "email" if message.startswith(_EMAIL) else str(values.get("error", kind))
    if "expected" in values:
        values = {**values, "expected": str(values["expected"]).replace("' or '", "' ou '")}
    return _first_that_fits(load()["problems"].get(kind, ()), values)


@lru_cache(maxsize=1)
def load() -> dict[str, dict[str, tuple[str, ...]]]:
    """By table (errors, advice, problems) and key: the sentences to try, in their order."""
    with _FILE.open("rb") as file:
        tables = tomllib.load(file)
    return {
        table: {key: (value,) if isinstance(value, str) else tuple(value) for key, value in rows.items()}
        for table, rows in tables.items()
    }


def fields_of(sentence: str) -> set[str]:
    """The names in braces."""
    return {name for _, name, _, _ in _FORMATTER.parse(sentence) if name is not None}


def _first_that_fits(sentences: tuple[str, ...], values: Mapping[str, Any]) -> str | None:
    for sentence in sentences:
        if fields_of(sentence) <= values.keys():
            try:
                return _FORMATTER.vformat(sentence, (), values)
            except (ValueError, TypeError):
                # A value of another kind than the sentence formats: an error must not fail while it is told.
                log.exception("a French sentence cannot be formatted: %s", sentence)
    return None
