"""The Redis client: events, and nothing that may not be lost."""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

CONNECT_SECONDS = 1
# Longer than any XREAD blocks, and short enough for the request or the job that waits.
ANSWER_SECONDS = 2


def connect(url: str) -> "Redis":
    """A client that fails fast: Redis is never the truth, so waiting for it only makes callers slow."""
    client: Redis = Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 1),  # once, because a pooled connection may be older than the server
    )
    return client
