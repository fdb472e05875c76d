"""Random requests made from the OpenAPI document: no answer is ever a 5xx, and every refusal has the one error body."""

import json
import random
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import Tenant

ROUNDS = 40
# A server that is not there is no failure of ours.
EXPECTED_5XX = {"PAYMENTS_NOT_CONFIGURED", "HUB_UNAVAILABLE", "LLM_NOT_CONFIGURED"}
STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**64,
    -(2**70),
    1e308,
    -0.0,
    1.5,
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\udfff\ud800",
    "\u202e\u200b",
    "é" * 300,
    "x" * 70_000,
    "../../etc/passwd",
    "'; DROP TABLE users; --",
    "{name}",
    "%s%n",
    "\r\nX-Header: 1",
    [],
    [None],
    [[[[]]]],
    {},
    {"": ""},
    {"a": {"b": {"c": {"d": []}}}},
    {"\0": 1},
]


class Generator:
    """Bodies and parameters that are mostly as the schema says, with strange values in places."""

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self.dice = random.Random(seed)
        self.schemas = document["components"]["schemas"]

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        if self.dice.random() < 0.15 or depth > 6:
            return self.dice.choice(STRANGE)
        if "$ref" in schema:
            return self.value(self.schemas[schema["$ref"].rsplit("/", 1)[1]], depth + 1)
        for union in ("anyOf", "oneOf", "allOf"):
            if union in schema:
                return self.value(self.dice.choice(schema[union]), depth + 1)
        if "enum" in schema:
            return self.dice.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        return self._of_type(schema, depth)

    def _of_type(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if kind == "object":
            fields = schema.get("properties", {})
            chosen = {name: self.value(one, depth + 1) for name, one in fields.items() if self.dice.random() < 0.8}
            if self.dice.random() < 0.3:
                chosen[self.dice.choice(["x", "id", "state", "\0", "\ud800", "y" * 500])] = self.dice.choice(STRANGE)
            return chosen
        if kind == "array":
            return [self.value(schema.get("items", {}), depth + 1) for _ in range(self.dice.randrange(4))]
        if kind in ("integer", "number"):
            low, high = schema.get("minimum", 0), schema.get("maximum", 100)
            return self.dice.choice(
                [low, high, low - 1, high + 1, self.dice.randint(int(low), max(int(low), int(high)))]
            )
        if kind == "boolean":
            return self.dice.random() < 0.5
        if kind == "string":
            if schema.get("format") == "uuid":
                return str(uuid4())
            if schema.get("format") == "email":
                return f"{uuid4()}@example.com"
            return "".join(self.dice.choices("abc \u00e9\u6587'\"\\/{}%", k=self.dice.randrange(1, 30)))
        return self.dice.choice(STRANGE)

    def body(self, schema: dict[str, Any]) -> bytes:
        text = json.dumps(self.value(schema), allow_nan=True).encode()
        return self._damaged(text) if self.dice.random() < 0.1 else text

    def query(self, parameters: list[dict[str, Any]]) -> dict[str, str]:
        pairs = {
            one["name"]: self.value(one["schema"])
            for one in parameters
            if one["in"] == "query" and self.dice.random() < 0.7
        }
        return {name: str(value)[:1000].encode("utf-8", "replace").decode() for name, value in pairs.items()}

    def _damaged(self, text: bytes) -> bytes:
        place = self.dice.randrange(len(text) + 1)
        return text[:place] + self.dice.choice([b"\0", b"\xff", b"}", b"[" * 2000, b"1e9999", b""]) + text[place + 1 :]


async def answers_properly(answer: httpx.Response, what: str) -> None:
    if answer.request.url.path.startswith("/v1/") and answer.status_code >= 400:
        assert answer.status_code < 500, f"{what}: {answer.status_code} {answer.text[:500]}"
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, f"{what}: {answer.text[:500]}"
        return
    if answer.status_code >= 500:
        assert answer.json()["error_code"] in EXPECTED_5XX, f"{what}: {answer.status_code} {answer.text[:500]}"
    if answer.status_code >= 400:
        assert set(answer.json()) == {"detail", "error_code", "context"}, f"{what}: {answer.text[:500]}"
        assert len(answer.json()["detail"]) < 5000, what


@pytest.mark.parametrize("seed", range(3))
async def test_random_requests(app: Any, tenant: Tenant, seed: int) -> None:
    document = app.openapi()
    generator = Generator(document, seed)
    project = await tenant.make_project()
    await tenant.upload(project, "a.txt", b"Some words of a text that is not empty.")
    for path, methods in document["paths"].items():
        for method, spec in methods.items():
            # The project stays, so that what follows has one; logging out would end the run.
            if path.endswith("/logout") or (method, path) == ("delete", "/projects/{project_id}"):
                continue
            content = spec.get("requestBody", {}).get("content", {}).get("application/json")
            for _ in range(ROUNDS if content else 6):
                body = generator.body(content["schema"]) if content else b""
                url = path.replace("{project_id}", project if generator.dice.random() < 0.9 else "no-uuid")
                url = url.replace("{filename}", generator.dice.choice(["a", "%00", "..%2f", "%ff"]))
                for name in ("file_id", "example_id", "job_id"):
                    url = url.replace(f"{{{name}}}", generator.dice.choice([str(uuid4()), "1", "%00", "x" * 300]))
                answer = await tenant.client.request(
                    method.upper(),
                    url,
                    params=generator.query(spec.get("parameters", [])),
                    content=body,
                    headers={"Content-Type": "application/json"} if body else {},
                )
                await answers_properly(answer, f"{method} {url} {body[:300]!r}")
