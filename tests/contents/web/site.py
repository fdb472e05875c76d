"""A web site on loopback whose answers are given byte for byte, so that it can be as hostile as it likes."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from backend.contents.web.fetch import Fetcher, FetchLimits
from backend.contents.web.guard import Address, Guard

# Writes an answer; the request's head is what the client sent.
Answer = Callable[[asyncio.StreamWriter, str], Awaitable[None]]
NAME = "page.test"
PAGES = frozenset({"text/html", "application/xhtml+xml", "application/pdf", "text/plain"})


def answer(
    body: bytes = b"", status: str = "200 OK", content_type: str = "text/html; charset=utf-8", **headers: str
) -> bytes:
    lines = {"Content-Type": content_type, "Content-Length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(status=status, Location=location)


@dataclass
class Site:
    """`pages` maps paths to whole answers, or to functions that write one; anything else is 404."""

    port: int = 0
    pages: dict[str, bytes | Answer] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{NAME}:{self.port}"

    def fetcher(
        self, *, resolver: object = None, ssl_context: ssl.SSLContext | None = None, **limits: float
    ) -> Fetcher:
        guard = Guard(frozenset({f"{NAME}:{self.port}"}), resolver or resolving("127.0.0.1"))  # type: ignore[arg-type]
        return Fetcher(guard, FetchLimits(**{"total_seconds": 10.0, **limits}), ssl_context)  # type: ignore[arg-type]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split()[1]
            self.requests.append(path)
            self.heads.append(head)
            page = self.pages.get(path, answer(b"no such page", "404 Not Found"))
            if isinstance(page, bytes):
                writer.write(page)
                await writer.drain()
            else:
                await page(writer, head)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def resolving(*addresses: str) -> Callable[[str, int], Awaitable[Sequence[Address]]]:
    async def resolve(host: str, port: int) -> Sequence[Address]:
        return [ip_address(address) for address in addresses]

    return resolve


@asynccontextmanager
async def running_site(
    host: str = "127.0.0.1", port: int = 0, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site.serve, host, port, ssl=ssl_context)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()


async def get(site: Site, path: str, folder: Path, fetcher: Fetcher | None = None) -> bytes:
    """What a fetch of a page of the site saves."""
    destination = folder / "fetched"
    await (fetcher or site.fetcher()).fetch(site.url + path, destination, accepted=PAGES)
    return destination.read_bytes()
