"""Fetching from servers that redirect in circles, drip, never end, swell, lie about themselves or break off."""

import asyncio
import gzip
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from backend.contents.web import errors
from tests.contents.web.site import NAME, PAGES, Site, answer, get, redirect, resolving, running_site

PAGE = "<html><body><p>Bonjour à tous, dit la page.</p></body></html>".encode()


async def test_a_page_is_saved_with_what_the_server_says_of_it(site: Site, tmp_path: Path) -> None:
    site.pages["/"] = answer(PAGE, content_type="Text/HTML; Charset='ISO-8859-1'")
    found = await site.fetcher().fetch(f"{site.url}/#part", tmp_path / "p", accepted=PAGES)
    assert (tmp_path / "p").read_bytes() == PAGE
    assert (found.url, found.content_type, found.charset, found.size_bytes) == (
        f"{site.url}/",
        "text/html",
        "iso-8859-1",
        len(PAGE),
    )
    head = site.heads[0].lower()
    assert f"host: {NAME}:{site.port}\r\n" in head
    assert "user-agent: finetuneflow/" in head
    assert "cookie" not in head and "authorization" not in head and "referer" not in head


@pytest.mark.parametrize(
    ("status", "failure", "retryable"),
    [
        ("404 Not Found", errors.UrlNotFound, False),
        ("410 Gone", errors.UrlNotFound, False),
        ("401 Unauthorized", errors.UrlRefused, False),
        ("403 Forbidden", errors.UrlRefused, False),
        ("451 Unavailable For Legal Reasons", errors.UrlRefused, False),
        ("418 I'm a teapot", errors.UrlRefused, False),
        ("429 Too Many Requests", errors.UrlAway, True),
        ("500 Oops", errors.UrlAway, True),
        ("503 Busy", errors.UrlAway, True),
        ("304 Not Modified", errors.UrlUnreachable, False),
        ("302 Found", errors.UrlUnreachable, False),
    ],
)
async def test_statuses(
    site: Site, tmp_path: Path, status: str, failure: type[errors.DomainError], retryable: bool
) -> None:
    site.pages["/"] = answer(PAGE, status)
    with pytest.raises(failure) as caught:
        await get(site, "/", tmp_path)
    assert caught.value.retryable is retryable
    assert NAME in str(caught.value)


async def test_redirects_are_followed_five_times_and_no_more(site: Site, tmp_path: Path) -> None:
    site.pages |= {f"/{n}": redirect(f"/{n + 1}", "308 Permanent Redirect") for n in range(9)}
    site.pages["/5"] = answer(PAGE)
    assert await get(site, "/0", tmp_path) == PAGE
    site.pages["/5"] = redirect("/6")
    with pytest.raises(errors.UrlTooManyRedirects):
        await get(site, "/0", tmp_path)
    site.requests.clear()
    site.pages["/loop"] = redirect("/loop")
    with pytest.raises(errors.UrlTooManyRedirects):
        await get(site, "/loop", tmp_path)
    assert site.requests == ["/loop"] * 6


async def test_every_hop_is_asked_for_permission(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/a": redirect("b"), "/b": redirect(f"//{NAME}:{site.port}/c"), "/c": answer(PAGE)}
    asked: list[str] = []

    async def permit(url: Any) -> None:
        asked.append(url.path)

    found = await site.fetcher().fetch(f"{site.url}/a", tmp_path / "p", accepted=PAGES, permit=permit)
    assert asked == ["/a", "/b", "/c"]
    assert found.url == f"{site.url}/c"


async def test_a_slow_drip_ends_with_the_time_for_all(site: Site, tmp_path: Path) -> None:
    async def drip(writer: Any, head: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
        while True:
            writer.write(b"<p>")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def slow_head(writer: Any, head: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: 1\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    site.pages |= {"/drip": drip, "/head": slow_head, "/hop": redirect("/drip")}
    for path in ("/drip", "/head", "/hop"):
        started = time.monotonic()
        with pytest.raises(errors.UrlAway, match="within 1 seconds"):
            await get(site, path, tmp_path, site.fetcher(total_seconds=1.0))
        assert time.monotonic() - started < 3


async def test_a_body_without_end_is_left(site: Site, tmp_path: Path) -> None:
    async def endless(writer: Any, head: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    site.pages |= {"/": endless, "/declared": answer(b"x", content_type="text/plain", Content_Length="99999999999")}
    for path in ("/", "/declared"):
        with pytest.raises(errors.UrlTooLarge):
            await get(site, path, tmp_path, site.fetcher(max_mb=1))


async def test_headers_without_end_are_left(site: Site, tmp_path: Path) -> None:
    async def endless(writer: Any, head: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: " + b"x" * 8192 + b"\r\n")
            await writer.drain()

    site.pages |= {"/": endless, "/many": answer(PAGE, **{f"X_{n}": "x" * 1000 for n in range(40)})}
    for path in ("/", "/many"):
        with pytest.raises(errors.UrlUnreachable):
            await get(site, path, tmp_path)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_bomb_is_noticed_before_it_has_swelled(site: Site, tmp_path: Path, coding: str) -> None:
    # 256 MB of zeros in 250 KB.
    packer = zlib.compressobj(9, wbits=31 if coding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    site.pages["/"] = answer(bomb, Content_Encoding=coding)
    tracemalloc.start()
    try:
        with pytest.raises(errors.UrlTooLarge):
            await get(site, "/", tmp_path, site.fetcher(max_mb=2))
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert (tmp_path / "fetched").stat().st_size <= 2 * 1024 * 1024


async def test_codings(site: Site, tmp_path: Path) -> None:
    raw = zlib.compressobj(wbits=-15)
    cases = {
        "/gzip": ("gzip", gzip.compress(PAGE)),
        "/two": ("x-gzip", gzip.compress(PAGE[:20]) + gzip.compress(PAGE[20:]) + b"padding"),
        "/zlib": ("deflate", zlib.compress(PAGE)),
        "/raw": ("deflate", raw.compress(PAGE) + raw.flush()),
        "/plain": ("identity", PAGE),
    }
    for path, (coding, body) in cases.items():
        site.pages[path] = answer(body, Content_Encoding=coding)
        assert await get(site, path, tmp_path) == PAGE, path
    for coding in ("br", "zstd", "gzip, gzip", "unknown"):
        site.pages["/"] = answer(PAGE, Content_Encoding=coding)
        with pytest.raises(errors.UrlTypeNotSupported):
            await get(site, "/", tmp_path)
    site.pages["/"] = answer(b"this is not gzip", Content_Encoding="gzip")
    with pytest.raises(errors.UrlUnreachable, match="broken"):
        await get(site, "/", tmp_path)
    site.pages["/"] = answer(gzip.compress(PAGE)[:-9], Content_Encoding="gzip")
    with pytest.raises(errors.UrlAway, match="cut off"):
        await get(site, "/", tmp_path)


async def test_types_that_are_no_text_are_refused_before_they_are_read(site: Site, tmp_path: Path) -> None:
    for kind in ("image/png", "video/mp4", "application/zip", "application/json"):
        site.pages["/"] = answer(PAGE, content_type=kind)
        with pytest.raises(errors.UrlTypeNotSupported, match=kind):
            await get(site, "/", tmp_path)
    for kind in ("", "application/octet-stream", "nonsense", "application/pdf"):
        site.pages["/"] = answer(PAGE, content_type=kind)
        assert await get(site, "/", tmp_path) == PAGE


async def test_broken_answers_are_worth_another_try(site: Site, tmp_path: Path) -> None:
    async def close(writer: Any, head: str) -> None:
        writer.close()

    site.pages |= {
        "/closed": close,
        "/short": answer(PAGE, Content_Length=str(len(PAGE) + 10)),
        "/nonsense": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "/chunk": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    }
    for path in ("/closed", "/short", "/nonsense", "/chunk"):
        with pytest.raises(errors.UrlAway):
            await get(site, path, tmp_path)


async def test_the_next_address_of_a_name_is_tried_when_one_is_closed(tmp_path: Path) -> None:
    async with running_site("127.0.0.2") as site:
        site.pages["/"] = answer(PAGE)
        fetcher = site.fetcher(resolver=resolving("127.0.0.1", "127.0.0.2"))
        assert await get(site, "/", tmp_path, fetcher) == PAGE
        with pytest.raises(errors.UrlAway, match="no connection"):
            await get(site, "/", tmp_path, site.fetcher(resolver=resolving("127.0.0.1")))


async def test_the_environments_proxies_are_not_used(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site.pages["/"] = answer(PAGE)
    assert await get(site, "/", tmp_path) == PAGE
