"""The counter behind the rate limits: one question to Redis for many requests, and no request left waiting."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from backend.api import rate_limit
from backend.api.rate_limit import RateLimits, RequestCounter, Rule
from backend.kit import redis as kit_redis
from backend.kit.config import Settings


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    client = kit_redis.connect(settings.redis_url)
    yield client
    await client.aclose()


async def scripts_run(redis: Redis) -> int:
    found = (await redis.info("commandstats")).get("cmdstat_evalsha", {})
    return int(found.get("calls", 0))


async def test_many_requests_at_once_ask_redis_a_few_times(redis: Redis) -> None:
    counter, rule = RequestCounter(redis, window_seconds=60), Rule("test", 100)
    await counter.count(rule, secrets.token_hex(8))
    before = await scripts_run(redis)
    callers = [secrets.token_hex(8) for _ in range(10)]
    counts = await asyncio.gather(*[counter.count(rule, caller) for caller in callers * 50])
    assert await scripts_run(redis) - before <= 10
    for number in range(10):
        left = [count.free for count in counts[number::10] if count is not None]
        assert left == list(range(99, 49, -1))


async def test_a_client_that_leaves_keeps_no_other_waiting(redis: Redis) -> None:
    counter, rule, caller = RequestCounter(redis, window_seconds=60), Rule("test", 10), secrets.token_hex(8)
    waiting = [asyncio.create_task(counter.count(rule, caller)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    counts = await asyncio.gather(*waiting[1:])
    assert [count.free for count in counts if count is not None] == [8, 7, 6, 5]


async def test_counting_goes_on_when_redis_is_back(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "PAUSE_SECONDS", 0.2)
    pool = redis.connection_pool
    counter, rule, caller = RequestCounter(redis, window_seconds=60), Rule("test", 10), secrets.token_hex(8)
    redis.connection_pool = kit_redis.connect("redis://127.0.0.1:9/0").connection_pool
    assert await counter.count(rule, caller) is None
    redis.connection_pool = pool
    assert await counter.count(rule, caller) is None, "not asked during the pause"
    await asyncio.sleep(0.25)
    count = await counter.count(rule, caller)
    assert count is not None
    assert count.free == 9


async def test_nothing_is_kept_longer_than_the_window(redis: Redis) -> None:
    counter, caller = RequestCounter(redis, window_seconds=7), secrets.token_hex(8)
    for _ in range(5):
        await counter.count(Rule("test", 3), caller)
    key = f"rate:test:{caller}"
    assert await redis.llen(key) == 3  # type: ignore[misc]  # redis-py's annotation covers the synchronous client too
    assert 5 < await redis.ttl(key) <= 7


async def test_a_lowered_limit_holds_at_once(redis: Redis) -> None:
    counter, caller = RequestCounter(redis, window_seconds=60), secrets.token_hex(8)
    for _ in range(5):
        await counter.count(Rule("test", 10), caller)
    count = await counter.count(Rule("test", 2), caller)
    assert count is not None
    assert not count.allowed
    assert count.headers()["ratelimit-remaining"] == "0"


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/projects/x/files/upload", "upload"),
        ("POST", "/api/contents/upload", "upload"),
        ("POST", "/projects/x/files/upload/", "upload"),
        ("POST", "/projects/x/chunks/generate", "generate"),
        ("POST", "/projects/x/dataset/generate", "generate"),
        ("POST", "/projects/x/train/start", "train"),
        ("POST", "/projects/x/train/a/b", "train"),
        ("POST", "/projects/x/dataset/preview", "post"),
        ("POST", "/api/fine-tuning-jobs", "post"),
        ("POST", "/uploads", "post"),
        ("GET", "/projects/x/train/status", "get"),
        ("HEAD", "/projects", "get"),
        ("PUT", "/api/projects/1", "change"),
        ("DELETE", "/projects/x/files/upload", "change"),
        ("OPTIONS", "/projects", None),
        ("GET", "/health", None),
    ],
)
def test_the_first_row_that_fits(settings: Settings, method: str, path: str, kind: str | None) -> None:
    async def nothing(*_: object) -> None: ...

    rule = RateLimits(nothing, settings=settings).rule_for(method, path)
    assert (rule.kind if rule else None) == kind
