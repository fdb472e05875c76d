"""Text that the database can hold: what models write may contain characters that PostgreSQL refuses."""

from collections.abc import Mapping
from typing import Any

import orjson


def storable(value: Any) -> Any:
    """The value without NUL and lone surrogates in any of its strings; lists and dicts are gone through."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "ignore").decode("utf-8")
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value


def storable_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as a JSON column takes it, other types as their text; empty when something in it cannot be told."""
    try:
        found: dict[str, Any] = orjson.loads(orjson.dumps(storable(dict(values)), default=str))
    except TypeError:  # a number beyond 64 bits, a key that is no text
        return {}
    return found
