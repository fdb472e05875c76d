"""Compares an answer with the contract's example: every documented field, of the right type or the very value."""

from datetime import datetime
from typing import Any
from uuid import UUID


def matches(value: Any, shape: Any, at: str = "answer") -> None:
    """`shape`: a type, a value, a dict of fields (others may be there too), or a list of the one shape of all items."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), f"{at} is {value!r}"
        for name, inner in shape.items():
            assert name in value, f"{at} has no {name}: {value}"
            matches(value[name], inner, f"{at}.{name}")
    elif isinstance(shape, list):
        assert isinstance(value, list), f"{at} is {value!r}"
        assert bool(value) == bool(shape), f"{at} is {value!r}"
        for index, item in enumerate(value):
            matches(item, shape[0], f"{at}[{index}]")
    elif shape is UUID:
        UUID(value)
    elif shape is datetime:
        assert datetime.fromisoformat(value).tzinfo is not None, f"{at} is {value!r}"
    elif shape is float:
        assert isinstance(value, (int, float)), f"{at} is {value!r}"
        assert not isinstance(value, bool), f"{at} is {value!r}"
    elif isinstance(shape, type):
        assert type(value) is shape, f"{at} is {value!r}, not {shape.__name__}"
    else:
        assert value == shape, f"{at} is {value!r}, not {shape!r}"
        assert type(value) is type(shape), f"{at} is {value!r}, not {shape!r}"
