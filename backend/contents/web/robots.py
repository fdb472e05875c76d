"""robots.txt (RFC 9309): whether a site lets this service fetch a page, asked by the same guard and remembered."""

import asyncio
import re
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from protego import Protego

from backend.contents.web.errors import (
    RobotsDisallow,
    RobotsUnavailable,
    UrlAway,
    UrlNotFound,
    UrlRefused,
    UrlTooLarge,
    UrlTooManyRedirects,
    UrlTypeNotSupported,
    UrlUnreachable,
)
from backend.contents.web.fetch import USER_AGENT, Fetcher
from backend.contents.web.guard import port_of

FILENAME = "robots.txt"
_MAX_MB = 1
_SECONDS = 8.0
_KEPT_SECONDS = 3600.0
_KEPT_SITES = 500
_MAX_LINES = 20_000
_AGENT_LINE = re.compile(r"^(?P<field>[^:#]*agents?[^:#]*:)(?P<name>[^#]*)", re.IGNORECASE)
_NOBODY = "nobody-here"


class Robots:
    """The rules of the sites that were asked, for an hour each; one for a whole process."""

    def __init__(self) -> None:
        self._rules: OrderedDict[str, tuple[float, Protego | None]] = OrderedDict()

    async def permit(self, fetcher: Fetcher, url: httpx.URL) -> None:
        """Raises RobotsDisallow, or RobotsUnavailable when the site does not say; UrlNotAllowed as any fetch."""
        site = f"{url.scheme}://{url.netloc.decode('ascii')}"
        known = self._rules.get(site)
        if known is None or known[0] < time.monotonic():
            known = (time.monotonic() + _KEPT_SECONDS, await _ask(fetcher, url))
            self._rules[site] = known
            self._rules.move_to_end(site)
            while len(self._rules) > _KEPT_SITES:
                self._rules.popitem(last=False)
        rules = known[1]
        if rules is not None and not await asyncio.to_thread(rules.can_fetch, str(url), USER_AGENT):
            raise RobotsDisallow(host=url.host)


async def _ask(fetcher: Fetcher, url: httpx.URL) -> Protego | None:
    """The rules of a site; None when it has none. A 4xx is "none", whatever else is no answer is "unknown"."""
    asking = replace(fetcher, limits=replace(fetcher.limits, max_mb=_MAX_MB, total_seconds=_seconds(fetcher)))
    address = httpx.URL(scheme=url.scheme, host=url.host, port=port_of(url), path=f"/{FILENAME}")
    with TemporaryDirectory(prefix="finetuneflow-robots-") as folder:
        path = Path(folder) / FILENAME
        try:
            await asking.fetch(str(address), path, accepted=frozenset({"text/plain"}))
        except (UrlNotFound, UrlRefused, UrlTypeNotSupported, UrlTooManyRedirects):
            # A site that answers every address with a page of its own has no rules either.
            return None
        except UrlTooLarge as error:
            raise RobotsUnavailable(host=url.host, reason=f"it has more than {_MAX_MB} MB") from error
        except UrlAway as error:
            raise RobotsUnavailable(host=url.host, reason=error.context["reason"]) from error
        except UrlUnreachable:
            # The page itself cannot be had either, and its own failure says more.
            raise
        return await asyncio.to_thread(_parse, path)


def _seconds(fetcher: Fetcher) -> float:
    # Shorter than the whole, so that it is the rules that are found to be away.
    return min(_SECONDS, fetcher.limits.total_seconds / 2)


def _parse(path: Path) -> Protego:
    """Rules of our own agent and of everybody.

    The names of all others become one: the library keeps each rule once for each name of its group, so that a file of
    a megabyte could hold a billion.
    """
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()[:_MAX_LINES]
    return Protego.parse("\n".join(_AGENT_LINE.sub(_renamed, line[:2000]) for line in lines))


def _renamed(line: "re.Match[str]") -> str:
    # A version behind the name is no part of it, here or in what it is compared with.
    name = line["name"].split("/")[0].strip().lower()
    return f"{line['field']} {name if name == '*' or name.strip('*') in USER_AGENT.lower() else _NOBODY}"
