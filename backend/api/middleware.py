"""Plain ASGI middleware: a request id on everything, and a guard for the mode without login."""

import logging
import re
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from backend.api.errors import render
from backend.kit import log as kit_log

log = logging.getLogger("backend.access")

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{8,64}$")
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class RequestId:
    """Takes the caller's X-Request-ID when it is a sane one, else makes one; logs the request under it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if _REQUEST_ID.match(offered) else str(uuid7())
        kit_log.unbind_all()
        kit_log.bind(request_id=request_id)
        started = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            elapsed_ms = (time.perf_counter() - started) * 1000
            log.info("%s %s %d %.1f ms", scope["method"], scope["path"], status, elapsed_ms)


class LocalGuard:
    """In AUTH_MODE=local nobody logs in, so a page of another site must not be able to drive the service.

    Refuses a Host that is not loopback (DNS rebinding) and an Origin of another site.
    """

    def __init__(self, app: ASGIApp, *, hosts: list[str], origins: list[str]) -> None:
        self.app = app
        self._hosts = LOOPBACK_HOSTS | set(hosts)
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            refusal = self._refusal(headers.get("host", ""), headers.get("origin"))
            if refusal is not None:
                await render(403, refusal, "FORBIDDEN_ORIGIN")(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, host: str, origin: str | None) -> str | None:
        if _name(host) not in self._hosts:
            return "AUTH_MODE=local answers only to localhost. Use http://127.0.0.1, or set AUTH_MODE=token."
        if origin is None or origin in self._origins:
            return None
        parts = urlsplit(origin)
        if parts.hostname in LOOPBACK_HOSTS and parts.netloc == host:
            return None
        return f"AUTH_MODE=local does not answer to pages of {origin}. Set AUTH_MODE=token and CORS_ORIGINS for that."


def _name(host: str) -> str:
    return host.rsplit(":", 1)[0] if not host.endswith("]") else host
