"""The Redis client: events, and nothing that may not be lost."""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def connect(url: str) -> "Redis":
    """A client that fails fast: Redis is never the truth, so waiting for it only makes callers slow."""
    client: Redis = Redis.from_url(
        url, decode_responses=True, socket_connect_timeout=2, socket_timeout=15, retry=Retry(NoBackoff(), 1)
    )
    return client
