"""Finding and checking JSON answers, compared with the reference implementation of JSON Schema."""

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.providers.llm.json_answer import find_object, schema_violation

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^x|y$"},
        "b": {"type": "array", "items": {"type": ["integer", "null"], "minimum": 0, "maximum": 9}, "maxItems": 2},
        "c": {"enum": [1, "1", None]},
        "d": {"anyOf": [{"type": "boolean"}, {"const": 5}]},
        "e": {"type": "number"},
    },
    "required": ["a"],
    "additionalProperties": False,
}
values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 12), st.sampled_from(["", "x", "xy", "abcd", "1"]), st.just(2.0)
)
documents = st.dictionaries(st.sampled_from("abcdef"), st.one_of(values, st.lists(values, max_size=3)), max_size=5)


@given(documents)
def test_agrees_with_jsonschema(document: dict[str, Any]) -> None:
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(document)
    assert (schema_violation(document, SCHEMA) is None) == valid


def test_an_unchecked_keyword_is_an_error() -> None:
    with pytest.raises(ValueError, match="uniqueItems"):
        schema_violation([], {"type": "array", "uniqueItems": True})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Here: ```json\n{"a": {"b": 2}}\n``` done', {"a": {"b": 2}}),
        ('{not json} {"a": 1}', {"a": 1}),
        ("[1, 2]", None),
        ("nothing", None),
        ('{"a": 1', None),
        ("{" * 5000, None),
    ],
)
def test_find_object(text: str, expected: dict[str, Any] | None) -> None:
    assert find_object(text) == expected
