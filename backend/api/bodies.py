"""Plain ASGI middleware: bounds bodies that are no uploads, and refuses what no column of the database can hold."""

import re
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.errors import render

MAX_BODY_BYTES = 1024 * 1024
MAX_DEPTH = 32
# Where thousands of rows come in one request.
MAX_BULK_BYTES = 32 * 1024 * 1024
_BULK = re.compile(r"/api/datasets/[^/]+/pairs/bulk")
# Signed by its sender, who would send a refused one again for days: what cannot be stored is left out of it later.
_SIGNED = frozenset({"/api/checkout/webhook"})
# The routes that read their body as it comes, with limits of their own.
_UPLOAD = re.compile(r"/projects/[^/]+/files/upload|/api/contents/upload")
_METHODS_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})


class PlainBodies:
    """Reads every body that is no upload whole, up to MAX_BODY_BYTES (in bulk MAX_BULK_BYTES), and hands it on.

    Answers 413 beyond that, and 422 for JSON that is broken, nested deeper than MAX_DEPTH, or holds a NUL character, a
    lone surrogate or a number that is none (PostgreSQL stores none of them).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if b"%00" in scope["query_string"]:
            await _invalid("query", "holds a NUL character, which cannot be stored", "nul_character")(
                scope, receive, send
            )
            return
        if scope["method"] in _METHODS_WITHOUT_BODY:
            await self.app(scope, receive, send)
            return
        kind = Headers(scope=scope).get("content-type", "").split(";")[0].strip().lower()
        if kind == "multipart/form-data" and _UPLOAD.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        limit = MAX_BULK_BYTES if _BULK.fullmatch(scope["path"]) else MAX_BODY_BYTES
        try:
            body = await _read(scope, receive, limit)
        except ClientDisconnect:
            return
        if body is None:
            await render(413, f"The body is larger than {limit // 1024} KB. Send less at once.", "PAYLOAD_TOO_LARGE")(
                scope, receive, send
            )
            return
        problem = None if scope["path"] in _SIGNED else problem_of(body, kind)
        if problem is not None:
            await _invalid("body", *problem)(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)


def problem_of(body: bytes, kind: str) -> tuple[str, str] | None:
    """(message, type) of what is wrong with a body of this media type, or None."""
    if kind == "application/x-www-form-urlencoded":
        return _NUL if b"\0" in unquote_to_bytes(body) else None
    if not body.strip() or not (kind.endswith(("/json", "+json")) or not kind):
        return None
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return f"is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno})", "json_invalid"
    return _problem_within(value, depth=1)


_NUL = ("holds a NUL character, which cannot be stored", "nul_character")


def _problem_within(value: Any, depth: int) -> tuple[str, str] | None:
    if isinstance(value, str):
        return _NUL if "\0" in value else None
    if not isinstance(value, (dict, list)):
        return None
    if depth > MAX_DEPTH:
        return f"is nested deeper than {MAX_DEPTH} levels", "too_deep"
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return next((found for part in parts if (found := _problem_within(part, depth + 1)) is not None), None)


async def _read(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None as soon as it is known to be too large. Raises ClientDisconnect."""
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdecimal() and int(declared[:19]) > limit:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then whatever comes after it (the client's going away)."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _invalid(field: str, message: str, kind: str) -> ASGIApp:
    problems = [{"field": field, "message": message, "type": kind}]
    return render(422, f"The request is not valid. The {field} {message}.", "VALIDATION_ERROR", {"errors": problems})
