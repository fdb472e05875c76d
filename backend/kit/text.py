"""Text that the database can hold: what models write may contain characters that PostgreSQL refuses."""

from typing import Any


def storable(value: Any) -> Any:
    """The value without NUL and lone surrogates in any of its strings; lists and dicts are gone through."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "ignore").decode("utf-8")
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value
