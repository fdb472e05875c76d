"""robots.txt: whose rules count, and what happens when a site has none or does not say."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.contents.web import errors
from backend.contents.web.fetch import Fetcher
from backend.contents.web.robots import Robots, _parse
from tests.contents.web.site import Site, answer, redirect


def rules(text: str) -> bytes:
    return answer(text.encode(), content_type="text/plain")


async def may(site: Site, path: str, robots: Robots | None = None, fetcher: Fetcher | None = None) -> bool:
    try:
        await (robots or Robots()).permit(fetcher or site.fetcher(), httpx.URL(site.url + path))
    except errors.RobotsDisallow:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ("", "/", True),
        ("User-agent: *\nDisallow: /", "/", False),
        ("User-agent: *\nDisallow: /private/", "/private/x", False),
        ("User-agent: *\nDisallow: /private/", "/public", True),
        ("User-agent: *\nDisallow:", "/", True),
        ("User-agent: *\nDisallow: /\nAllow: /open", "/open/x", True),
        ("User-agent: *\nDisallow: /*.pdf$", "/a/b.pdf", False),
        ("User-agent: *\nDisallow: /*.pdf$", "/a/b.pdf?x", True),
        ("User-agent: OtherBot\nDisallow: /", "/", True),
        ("User-agent: OtherBot\nDisallow: /\n\nUser-agent: FineTuneFlow\nDisallow:", "/", True),
        ("User-agent: finetuneflow\nDisallow: /", "/", False),
        ("User-agent: FineTuneFlow/2.0\nDisallow: /", "/", False),
        ("User-agent: *\nDisallow: /\n\nUser-agent: FineTuneFlow\nAllow: /", "/x", True),
        ("User-agent: OtherBot\nUser-agent: FineTuneFlow\nDisallow: /", "/", False),
        ("\ufeffUser-agent: *\r\nDisallow: /\r\n", "/", False),
        ("<html>not rules at all</html>", "/", True),
    ],
)
async def test_rules(site: Site, text: str, path: str, allowed: bool) -> None:
    site.pages["/robots.txt"] = rules(text)
    assert await may(site, path) is allowed


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone", "401 Unauthorized", "403 Forbidden"])
async def test_a_site_without_rules_allows_everything(site: Site, status: str) -> None:
    site.pages["/robots.txt"] = answer(b"User-agent: *\nDisallow: /", status, "text/plain")
    assert await may(site, "/")


async def test_a_page_in_place_of_rules_and_a_circle_are_none(site: Site) -> None:
    site.pages["/robots.txt"] = answer(b"<html>User-agent: *\nDisallow: /</html>")
    assert await may(site, "/")
    site.pages["/robots.txt"] = redirect("/robots.txt")
    assert await may(site, "/")


async def test_a_site_that_does_not_say_is_left_alone(site: Site) -> None:
    async def silent(writer: Any, head: str) -> None:
        await asyncio.sleep(60)

    async def close(writer: Any, head: str) -> None:
        writer.close()

    large = rules("# " + "x" * 2_000_000)
    for page in (answer(status="500 Oops"), answer(status="503 Busy"), silent, close, large):
        site.pages["/robots.txt"] = page
        with pytest.raises(errors.RobotsUnavailable) as caught:
            await may(site, "/", fetcher=site.fetcher(total_seconds=2.0))
        assert caught.value.retryable
    site.pages["/robots.txt"] = rules("")
    assert await may(site, "/")


async def test_rules_are_remembered_and_failures_are_not(site: Site) -> None:
    robots = Robots()
    site.pages["/robots.txt"] = answer(status="500 Oops")
    with pytest.raises(errors.RobotsUnavailable):
        await may(site, "/", robots)
    site.pages["/robots.txt"] = rules("User-agent: *\nDisallow: /no")
    assert [await may(site, path, robots) for path in ("/", "/no", "/yes")] == [True, False, True]
    assert site.requests == ["/robots.txt"] * 2


async def test_rules_that_lead_into_the_own_network_are_not_followed(site: Site) -> None:
    site.pages["/robots.txt"] = redirect("http://169.254.169.254/")
    with pytest.raises(errors.UrlNotAllowed):
        await may(site, "/")


def test_rules_made_to_cost_time_do_not(tmp_path: Path) -> None:
    """Each rule for each agent of its group would be 50 million of them."""
    path = tmp_path / "robots.txt"
    agents, lines = [f"User-agent: bot{n}" for n in range(10_000)], [f"Disallow: /{n}*a*b*c$" for n in range(5_000)]
    path.write_text("\n".join([*agents, *lines, "User-agent: *", "Disallow: /x"]))
    started = time.process_time()
    found = _parse(path)
    assert not found.can_fetch("https://page.test/x", "FineTuneFlow")
    assert time.process_time() - started < 3
