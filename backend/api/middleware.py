"""Plain ASGI middleware: a request id on everything, and a guard for the mode without login."""

import logging
import re
import time
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from backend.api.errors import render, render_unexpected
from backend.kit import log as kit_log

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{8,64}$")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
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
        started_to_answer = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, started_to_answer
            if message["type"] == "http.response.start":
                status, started_to_answer = message["status"], True
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            # Here and not in an exception handler, whose answer would be sent past this header.
            if started_to_answer:
                raise
            await render_unexpected(error)(scope, receive, send_with_id)
        finally:
            kit_log.write_access(
                method=scope["method"],
                path=scope["path"],
                status=status,
                elapsed_ms=(time.perf_counter() - started) * 1000,
                request_id=request_id,
            )


class LocalGuard:
    """In AUTH_MODE=local nobody logs in, so a page of another site must not be able to drive the service.

    Refuses a Host that is not loopback (DNS rebinding) and an Origin of another site; and any caller or listening
    address that is not loopback, because whoever started the server may have made it listen to the whole network.
    """

    def __init__(self, app: ASGIApp, *, hosts: list[str], origins: list[str]) -> None:
        self.app = app
        self._hosts = LOOPBACK_HOSTS | {host.lower() for host in hosts}
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            refusal = self._network_refusal(scope) or self._refusal(
                headers.get("host", "").lower(), headers.get("origin")
            )
            if refusal is not None:
                await render(403, refusal, "FORBIDDEN_ORIGIN")(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _network_refusal(self, scope: Scope) -> str | None:
        if all(_is_local(scope.get(end)) for end in ("client", "server")):
            return None
        log.warning("AUTH_MODE=local refused a request that came from %s to %s", scope["client"], scope["server"])
        return "AUTH_MODE=local has no login, so it answers to this machine only. Set AUTH_MODE=token for a network."

    def _refusal(self, host: str, origin: str | None) -> str | None:
        if _name(host) not in self._hosts:
            return "AUTH_MODE=local answers only to localhost. Use http://127.0.0.1, or set AUTH_MODE=token."
        if origin is None or origin in self._origins:
            return None
        if _is_own(origin, host):
            return None
        return f"AUTH_MODE=local does not answer to pages of {origin}. Set AUTH_MODE=token and CORS_ORIGINS for that."


def _is_local(address: tuple[str, int | None] | None) -> bool:
    """Whether one end of a connection is loopback or a Unix socket (no port, or no address at all)."""
    if address is None or address[1] is None or address[0] in LOOPBACK_HOSTS:
        return True
    try:
        found = ip_address(address[0].split("%")[0])
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _is_own(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin.lower())
        return parts.hostname in LOOPBACK_HOSTS and parts.netloc == host
    except ValueError:
        return False


def _name(host: str) -> str:
    """The name in a Host header without its port; nothing for a header that is anything else than those two."""
    found = _HOST.fullmatch(host)
    return found.group(1) if found else ""
