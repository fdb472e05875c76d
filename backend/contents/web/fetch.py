"""Fetches one resource from a stranger's server: to checked addresses only, and within bounds on everything."""

import asyncio
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import httpx

from backend.contents.web.errors import (
    UrlAway,
    UrlInvalid,
    UrlNotAllowed,
    UrlNotFound,
    UrlRefused,
    UrlTooLarge,
    UrlTooManyRedirects,
    UrlTypeNotSupported,
    UrlUnreachable,
)
from backend.contents.web.guard import Guard
from backend.contents.web.unpacking import UnknownCoding, Unpacker
from backend.kit.config import Settings

USER_AGENT = "FineTuneFlow"
MAX_REDIRECTS = 5
_MAX_HEADER_BYTES = 32 * 1024
_CONNECT_SECONDS = 5.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_FOR_A_MOMENT = frozenset({408, 425, 429})
_HEADERS = {
    "User-Agent": f"{USER_AGENT}/1.0",
    "Accept": "text/html, application/xhtml+xml, application/pdf, text/plain;q=0.8",
    "Accept-Language": "fr, en;q=0.8, *;q=0.5",
    # Only what is unpacked here, under a limit. A server that sends another coding all the same is refused.
    "Accept-Encoding": "gzip, deflate",
    "Connection": "close",
}
_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}")
_CHARSET = re.compile(r"""charset\s*=\s*["']?([A-Za-z0-9._:-]{1,40})""", re.IGNORECASE)

# Called with each address, redirects included, before it is fetched; raises to stay away.
Permit = Callable[[httpx.URL], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds on one fetch: bytes as sent and as unpacked, and the time for all its redirects together."""

    max_mb: int = 10
    total_seconds: float = 20.0

    @property
    def max_bytes(self) -> int:
        return self.max_mb * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Resource:
    """What was fetched: `url` is where the redirects ended; type and charset are the server's claims, maybe empty."""

    url: str
    content_type: str
    charset: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Fetcher:
    """GET requests through the guard. No cookies, no proxies and no credentials, whatever the environment holds."""

    guard: Guard
    limits: FetchLimits = FetchLimits()
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> "Fetcher":
        return cls(
            Guard(test_hosts=frozenset(settings.web_test_hosts)),
            FetchLimits(max_mb=settings.web_max_mb, total_seconds=settings.web_timeout_seconds),
        )

    async def fetch(
        self, url: str, destination: Path, *, accepted: frozenset[str], permit: Permit | None = None
    ) -> Resource:
        """Saves what `url` leads to, unpacked, in `destination`.

        A server that names no type, or `application/octet-stream`, is taken at its bytes: whoever reads them decides.
        Raises the errors of `web.errors`; UrlAway is the one that a later try may not meet.
        """
        host = url
        try:
            async with asyncio.timeout(self.limits.total_seconds):
                checked = self.guard.check(url)
                host = checked.host
                return await self._follow(checked, destination, accepted, permit)
        except TimeoutError as error:
            reason = f"it did not answer in full within {self.limits.total_seconds:g} seconds"
            raise UrlAway(host=host, reason=reason) from error

    async def _follow(
        self, url: httpx.URL, destination: Path, accepted: frozenset[str], permit: Permit | None
    ) -> Resource:
        first = url.host
        for _ in range(MAX_REDIRECTS + 1):
            if permit is not None:
                await permit(url)
            async with self._answer(url) as response:
                if response.status_code in _REDIRECTS and "location" in response.headers:
                    url = self._next(url, response.headers["location"])
                    continue
                _check_status(url, response.status_code)
                content_type, charset = _claims(response.headers)
                if content_type not in accepted | {"", "application/octet-stream"}:
                    raise UrlTypeNotSupported(host=url.host, type=content_type)
                size = await self._save(url, response, destination)
                return Resource(str(url), content_type, charset, size)
        raise UrlTooManyRedirects(host=first, limit=MAX_REDIRECTS)

    @asynccontextmanager
    async def _answer(self, url: httpx.URL) -> AsyncIterator[httpx.Response]:
        """One request on a connection of its own, to an address that was checked a moment before."""
        transport = GuardedTransport(self.guard, self.ssl_context or _ssl_context())
        timeout = httpx.Timeout(self.limits.total_seconds, connect=_CONNECT_SECONDS)
        try:
            async with (
                httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client,
                client.stream("GET", url, headers=_HEADERS, follow_redirects=False) as response,
            ):
                if sum(len(name) + len(value) for name, value in response.headers.raw) > _MAX_HEADER_BYTES:
                    raise UrlUnreachable(host=url.host, reason="its answer has too many headers")
                yield response
        except httpx.TransportError as error:
            raise _explained(url, error) from error
        except httpx.InvalidURL as error:
            raise UrlInvalid(reason="it cannot be read as an address of the web") from error

    def _next(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            target = url.join(location)
        except (httpx.InvalidURL, ValueError) as error:
            raise UrlUnreachable(host=url.host, reason="it leads to an address that is none") from error
        try:
            return self.guard.check(str(target))
        except UrlInvalid as error:
            raise UrlNotAllowed(host=url.host, reason="it leads to an address that is not of the web") from error

    async def _save(self, url: httpx.URL, response: httpx.Response, destination: Path) -> int:
        limit = self.limits.max_bytes
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:19]) > limit:
            raise UrlTooLarge(host=url.host, limit_mb=self.limits.max_mb)
        unpack = _unpacker(url, response.headers.get("content-encoding", ""))
        received = written = 0
        try:
            with destination.open("wb") as file:
                async for part in response.aiter_raw():
                    received += len(part)
                    for piece in unpack.pieces(part):
                        written += len(piece)
                        if written > limit:
                            break
                        file.write(piece)
                    if max(received, written) > limit:
                        raise UrlTooLarge(host=url.host, limit_mb=self.limits.max_mb)
        except zlib.error as error:
            raise UrlUnreachable(host=url.host, reason="its answer is packed in a way that is broken") from error
        if not unpack.is_whole:
            raise UrlAway(host=url.host, reason="its answer was cut off")
        return written


class GuardedTransport(httpx.AsyncBaseTransport):
    """Connects to an address that the guard allowed, while TLS and the Host header keep the name.

    The name is looked up once, here: what was checked is what is connected to, whatever the name says a moment later.
    """

    def __init__(self, guard: Guard, ssl_context: ssl.SSLContext) -> None:
        self._guard = guard
        self._inner = httpx.AsyncHTTPTransport(verify=ssl_context, trust_env=False, retries=0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        addresses = await self._guard.addresses(request.url)
        for address in addresses[:-1]:
            try:
                return await self._send(request, str(address))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                # Nothing was sent: the next address of the same name is as good.
                continue
        return await self._send(request, str(addresses[-1]))

    async def _send(self, request: httpx.Request, address: str) -> httpx.Response:
        pinned = httpx.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,
            extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
        )
        return await self._inner.handle_async_request(pinned)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _check_status(url: httpx.URL, status: int) -> None:
    if 200 <= status < 300:
        return
    if status in _GONE:
        raise UrlNotFound(host=url.host, status=status)
    if status in _FOR_A_MOMENT or status >= 500:
        raise UrlAway(host=url.host, reason=f"it answers with status {status}")
    if status >= 400:
        raise UrlRefused(host=url.host, status=status)
    raise UrlUnreachable(host=url.host, reason=f"it answers with status {status}")


def _claims(headers: Mapping[str, str]) -> tuple[str, str]:
    """The media type and the charset that a Content-Type header names; empty what is not there or no such thing."""
    value = headers.get("content-type", "")[:1000]
    media_type = value.split(";")[0].strip().lower()
    charset = _CHARSET.search(value)
    return media_type if _TYPE.fullmatch(media_type) else "", charset[1].lower() if charset else ""


def _unpacker(url: httpx.URL, coding: str) -> Unpacker:
    try:
        return Unpacker(coding.strip().lower())
    except UnknownCoding as error:
        raise UrlTypeNotSupported(host=url.host, type="a packing that was not asked for") from error


def _explained(url: httpx.URL, error: httpx.TransportError) -> UrlUnreachable:
    if isinstance(error, httpx.TimeoutException):
        return UrlAway(host=url.host, reason="it did not answer in time")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UrlUnreachable(host=url.host, reason="its certificate is not valid")
        if isinstance(cause, ssl.SSLError):
            return UrlUnreachable(host=url.host, reason="no secure connection to it comes about")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectError):
        return UrlAway(host=url.host, reason="no connection to it comes about")
    return UrlAway(host=url.host, reason="its answer was cut off or is not HTTP")


@lru_cache(maxsize=1)
def _ssl_context() -> ssl.SSLContext:
    # Reading all certificates takes longer than most fetches.
    return httpx.create_ssl_context(trust_env=False)
