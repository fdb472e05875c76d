"""How often one caller may call: the contract's table, counted in Redis for all processes of the API together."""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from redis.asyncio import Redis
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.auth import VerifiedTokens
from backend.api.errors import ErrorOut, render
from backend.api.services import Services
from backend.kit.config import Settings
from backend.kit.errors import DomainError
from backend.users.errors import BadToken
from backend.users.tokens import PERSONAL_PREFIX, digest

log = logging.getLogger(__name__)

# Probes come by the second and must see the service as it is; Stripe sends what it has, and is known by its signature.
EXEMPT_PATHS = frozenset({"/health", "/api/checkout/webhook"})
HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
_FIRST_HEADER = b"ratelimit-limit"
# A request waits at most so long for its count; then nobody is counted for a while.
ANSWER_SECONDS = 1.0
PAUSE_SECONDS = 5.0
_BATCH = 200

# One list per caller and kind with the time (ms, by Redis's own clock) of each request that the window still holds.
# For each key: how many more requests are free, -1 when this one was refused; ms until the next one becomes free.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local window = tonumber(ARGV[1])
local answers = {}
for place, key in ipairs(KEYS) do
  local limit = tonumber(ARGV[place + 1])
  local oldest = redis.call('LINDEX', key, -1)
  while oldest and tonumber(oldest) <= now - window do
    redis.call('RPOP', key)
    oldest = redis.call('LINDEX', key, -1)
  end
  local free = limit - redis.call('LLEN', key)
  if free > 0 then
    redis.call('LPUSH', key, now)
    redis.call('PEXPIRE', key, window)
    oldest = oldest or now
  else
    free = 0
    oldest = redis.call('LINDEX', key, limit - 1)
  end
  answers[#answers + 1] = free - 1
  answers[#answers + 1] = oldest + window - now
end
return answers
"""


class RateLimited(DomainError):
    status = 429
    code = "RATE_LIMITED"
    template = (
        "Too many requests of this kind: {limit} in {window_seconds} seconds are allowed. "
        "Wait {retry_after_seconds} seconds, then try again."
    )

    def __init__(self, count: "Count") -> None:
        super().__init__(
            limit=count.limit, window_seconds=count.window_seconds, retry_after_seconds=count.reset_seconds
        )
        self.headers: Mapping[str, str] = {**count.headers(), "Retry-After": str(count.reset_seconds)}


@dataclass(frozen=True, slots=True)
class Rule:
    """At most `limit` requests of one kind in one window."""

    kind: str
    limit: int


@dataclass(frozen=True, slots=True)
class Count:
    """Where a caller stands after a request. `reset_seconds`: until its oldest request leaves the window."""

    limit: int
    window_seconds: int
    free: int
    reset_seconds: int

    @property
    def allowed(self) -> bool:
        return self.free >= 0

    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.raw_headers()}

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"ratelimit-limit", b"%d" % self.limit),
            (b"ratelimit-remaining", b"%d" % max(self.free, 0)),
            (b"ratelimit-reset", b"%d" % self.reset_seconds),
        ]


class RateLimits:
    """Plain ASGI middleware: counts each request before anything is done for it, and answers 429 beyond the limit.

    When Redis does not answer, requests pass uncounted: what needs Redis says so itself.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self._upload = Rule("upload", settings.rate_limit_upload)
        self._generate = Rule("generate", settings.rate_limit_generate)
        self._train = Rule("train", settings.rate_limit_train)
        self._post = Rule("post", settings.rate_limit_post)
        self._get = Rule("get", settings.rate_limit_get)
        self._change = Rule("change", settings.rate_limit_change)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rule = self.rule_for(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if rule is None:
            await self.app(scope, receive, send)
            return
        counter: RequestCounter = scope["app"].state.request_counter
        count = await counter.count(rule, caller_of(scope))
        if count is None:
            await self.app(scope, receive, send)
            return
        if not count.allowed:
            error = RateLimited(count)
            await render(error.status, error.detail, error.code, error.context, error.headers)(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = message.get("headers", ())
                # A stricter rule further in may have refused the request, and says by its own headers why.
                if not any(name == _FIRST_HEADER for name, _ in given):
                    # As bytes, without a Headers object: every answer of the service passes here.
                    message["headers"] = [*given, *count.raw_headers()]
            await send(message)

        await self.app(scope, receive, send_with_limits)

    def rule_for(self, method: str, path: str) -> Rule | None:
        """The first line of the contract's table that fits; None for what is not counted."""
        if path in EXEMPT_PATHS or method == "OPTIONS":
            return None
        if method in ("GET", "HEAD"):
            return self._get
        if method != "POST":
            return self._change
        path = path.rstrip("/")
        if path.endswith("/upload"):
            return self._upload
        if path.endswith("/generate"):
            return self._generate
        return self._train if "/train/" in path else self._post


class RequestCounter:
    """Counts requests in sliding windows. Those that come while Redis is asked wait and are counted together next.

    So a busy process asks Redis once for many requests, and never twice for one.
    """

    def __init__(self, redis: Redis, *, window_seconds: int, enabled: bool = True) -> None:
        self._script = redis.register_script(_SCRIPT)
        self._window_seconds = window_seconds
        self._enabled = enabled
        self._waiting: list[_Waiting] = []
        self._asking: asyncio.Task[None] | None = None
        self._silent_until = 0.0

    async def count(self, rule: Rule, caller: str) -> Count | None:
        """Counts one request, or refuses it uncounted; None when limits are off or Redis does not answer."""
        if not self._enabled or time.monotonic() < self._silent_until:
            return None
        waiting = _Waiting(rule, f"rate:{rule.kind}:{caller}", asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await waiting.answer

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                counts = await self._counts(batch)
                for waiting, count in zip(batch, counts, strict=True):
                    if not waiting.answer.done():  # its client may have left
                        waiting.answer.set_result(count)
        finally:
            self._asking = None

    async def _counts(self, batch: "list[_Waiting]") -> "list[Count] | list[None]":
        keys: list[Any] = [waiting.key for waiting in batch]
        arguments: list[Any] = [self._window_seconds * 1000, *[waiting.rule.limit for waiting in batch]]
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await self._script(keys=keys, args=arguments)
            return [
                Count(waiting.rule.limit, self._window_seconds, int(free), max(math.ceil(wait_ms / 1000), 1))
                for waiting, free, wait_ms in zip(batch, found[::2], found[1::2], strict=True)
            ]
        except Exception as error:  # whatever it is: a limit is no reason to fail a request
            log.warning("requests are not counted for %.0f s, for want of an answer: %r", PAUSE_SECONDS, error)
            self._silent_until = time.monotonic() + PAUSE_SECONDS
            return [None] * len(batch)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that waits for its count."""

    rule: Rule
    key: str
    answer: "asyncio.Future[Count | None]"


async def count_login(request: Request, settings: Settings, account: str) -> None:
    """Counts an attempt to log in to an account from the caller's address. Raises RateLimited."""
    counter: RequestCounter = request.app.state.request_counter
    # The account as a digest: Redis holds no e-mail address, and no key of any length that a caller likes.
    name = hashlib.sha256(account.strip().lower().encode("utf-8", "replace")).hexdigest()[:32]
    count = await counter.count(Rule("login", settings.rate_limit_login), f"{address_of(request.scope)}:{name}")
    if count is not None and not count.allowed:
        raise RateLimited(count)


def caller_of(scope: Scope) -> str:
    """The user of a token that is ours, the owner of AUTH_MODE=local, or else the address.

    A process counts a personal access token's first request for the address: only then it learns whose it is.
    """
    services: Services = scope["app"].state.services
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = given.decode("latin-1").partition(" ")
    if scheme.lower() == "bearer" and token.startswith(PERSONAL_PREFIX):
        user = services.token_uses.last_user(digest(token))
        if user is not None:
            return f"user:{user}"
    elif scheme.lower() == "bearer":
        verified: VerifiedTokens = scope["app"].state.verified_tokens
        try:
            return f"user:{verified.verify(services, token).user}"
        except BadToken:
            pass
    elif services.local_owner is not None:
        return f"user:{services.local_owner.public_id}"
    return f"address:{address_of(scope)}"


def address_of(scope: Scope) -> str:
    """The client's address; of IPv6 the network of 64 bits, which is what one client has.

    Behind a proxy that uvicorn trusts (FORWARDED_ALLOW_IPS) this is the address that the proxy names.
    """
    host = str(scope["client"][0]) if scope.get("client") else "local"
    try:
        address = ip_address(host.split("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def rate_limit_docs(model: type[BaseModel] = ErrorOut) -> dict[int | str, dict[str, Any]]:
    """For the `responses=` of every route that is counted."""
    integer = {"schema": {"type": "integer"}}
    names = (*HEADERS, "Retry-After")
    return {
        429: {
            "model": model,
            "description": "Too many requests; Retry-After says in how many seconds to try again",
            "headers": dict.fromkeys(names, integer),
        }
    }
