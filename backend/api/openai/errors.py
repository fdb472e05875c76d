"""Failures of this face in OpenAI's shape: {"error": {message, type, param, code}}, wherever they came from."""

from typing import Any

import orjson
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/v1/"
_CODES = {
    "FINE_TUNING_NOT_FOUND": "model_not_found",
    "PROMPT_TOO_LONG": "context_length_exceeded",
    "UNAUTHORIZED": "invalid_api_key",
    "BAD_TOKEN": "invalid_api_key",
    "RATE_LIMITED": "rate_limit_exceeded",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorOut(BaseModel):
    error: OpenAIError


def openai_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses=`: the error body under each of its statuses."""
    return {status: {"model": OpenAIErrorOut} for status in statuses}


def error_body(status: int, detail: str, code: str, context: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's form of one of our failures. `param` is the field or parameter that it is about."""
    problems = context.get("errors") or [{}]
    param = context.get("parameter") or str(problems[0].get("field", "")).removeprefix("body.") or None
    if code == "FINE_TUNING_NOT_FOUND":
        param = "model"
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": detail, "type": kind, "param": param, "code": _CODES.get(code, code.lower())}}


class OpenAIErrors:
    """Plain ASGI middleware: turns every failure below /v1 into OpenAI's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        held: Message | None = None
        body = bytearray()

        async def send_in_shape(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and message["status"] >= 400 and _is_json(message):
                held = message
                return
            if held is None:
                await send(message)
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                await _send_in_shape(held, bytes(body), send)

        await self.app(scope, receive, send_in_shape)


def _is_json(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("application/json")


async def _send_in_shape(start: Message, body: bytes, send: Send) -> None:
    found = orjson.loads(body)
    failure = error_body(start["status"], found["detail"], found["error_code"], found.get("context") or {})
    content = orjson.dumps(failure)
    MutableHeaders(scope=start)["Content-Length"] = str(len(content))
    await send(start)
    await send({"type": "http.response.body", "body": content})
