"""A model's JSON answer: find the object in its text, and check it against the JSON Schema that was asked for."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_CHECKED = {
    *("type", "enum", "const", "properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "minimum", "maximum", "anyOf"),
}
_ANNOTATIONS = {"title", "description", "default", "examples", "$schema"}


def find_object(text: str) -> dict[str, Any] | None:
    """First JSON object in the text, whether bare, in a code fence or between sentences; None when there is none."""
    text = _THINKING.sub("", text)
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start != -1:
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        return value if isinstance(value, dict) else None
    return None


def schema_violation(value: Any, schema: Mapping[str, Any]) -> str | None:
    """First way in which the value breaks the schema, as a sentence; None when it meets it.

    Covers the keywords that structured output of language models knows. Raises ValueError on any other keyword, so that
    a schema is never half checked.
    """
    return next(_violations(value, schema, "answer"), None)


def _violations(value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    unknown = schema.keys() - _CHECKED - _ANNOTATIONS
    if unknown:
        raise ValueError(f"JSON Schema keywords that are not checked here: {', '.join(sorted(unknown))}")
    names = schema.get("type")
    if names is not None and not any(_is_type(value, name) for name in ([names] if isinstance(names, str) else names)):
        yield f"{where} is not of type {names}"
        return
    if "enum" in schema and not any(_same(value, choice) for choice in schema["enum"]):
        yield f"{where} is none of the allowed values"
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{where} is not the required value"
    if "anyOf" in schema and all(schema_violation(value, option) for option in schema["anyOf"]):
        yield f"{where} matches none of the alternatives"
    if isinstance(value, dict):
        yield from _object_violations(value, schema, where)
    elif isinstance(value, list):
        yield from _array_violations(value, schema, where)
    elif isinstance(value, str):
        yield from _string_violations(value, schema, where)
    elif _is_type(value, "number"):
        if "minimum" in schema and value < schema["minimum"]:
            yield f"{where} is less than {schema['minimum']}"
        if "maximum" in schema and value > schema["maximum"]:
            yield f"{where} is more than {schema['maximum']}"


def _object_violations(value: dict[str, Any], schema: Mapping[str, Any], where: str) -> Iterator[str]:
    properties: Mapping[str, Any] = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where} lacks '{name}'"
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        if name in properties:
            yield from _violations(item, properties[name], f"{where}.{name}")
        elif others is False:
            yield f"{where} has an unexpected '{name}'"
        elif isinstance(others, Mapping):
            yield from _violations(item, others, f"{where}.{name}")


def _array_violations(value: list[Any], schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if len(value) < schema.get("minItems", 0):
        yield f"{where} has fewer than {schema['minItems']} items"
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        yield f"{where} has more than {schema['maxItems']} items"
    if "items" in schema:
        for index, item in enumerate(value):
            yield from _violations(item, schema["items"], f"{where}[{index}]")


def _string_violations(value: str, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if len(value) < schema.get("minLength", 0):
        yield f"{where} is shorter than {schema['minLength']} characters"
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        yield f"{where} is longer than {schema['maxLength']} characters"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where} does not match the required pattern"


def _is_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):  # Python counts bool as int, JSON does not
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])


def _same(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
