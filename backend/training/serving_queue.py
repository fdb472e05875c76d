"""Questions on their way to a serving process and answers on their way back: Redis keys, and every step on them."""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import orjson
from redis.asyncio import Redis

from backend.training.questions import Question

# Prompts and answers are in Redis only while they are on their way, and never longer than this.
KEPT_SECONDS = 300
# A question whose asker has not said for so long that he waits is dropped; a host that was silent so long is gone.
LEASE_SECONDS = 8.0
HOST_SECONDS = 6.0
FIRST = "0-0"
_BLOCK_MS = 1000

_HOSTS, _LIVE, _WAITING = "serving:hosts", "serving:live", "serving:waiting"
_NOW = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000) "

# KEYS: hosts, live, live of the user, waiting, request. ARGV: id, request, lease, kept, host's freshness (ms), limits.
_ADMIT = (
    _NOW
    + """
if redis.call('ZCOUNT', KEYS[1], now - ARGV[5], '+inf') == 0 then return 'nobody' end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[6]) then return 'user' end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[7]) then return 'full' end
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[3], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
redis.call('SET', KEYS[5], ARGV[2], 'PX', ARGV[4])
redis.call('RPUSH', KEYS[4], ARGV[1])
redis.call('PEXPIRE', KEYS[4], ARGV[4])
return 'admitted'
"""
)
# KEYS as above. ARGV: id, lease, host's freshness (ms), host or nothing. Returns whether somebody (that host) is alive.
# A host may have died between taking the id and claiming the request: the id goes back then.
_RENEW = (
    _NOW
    + """
redis.call('ZADD', KEYS[2], 'XX', now + ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], 'XX', now + ARGV[2], ARGV[1])
if ARGV[4] ~= '' then
  local seen = redis.call('ZSCORE', KEYS[1], ARGV[4])
  return (seen and tonumber(seen) >= now - ARGV[3]) and 1 or 0
end
if redis.call('EXISTS', KEYS[5]) == 1 and not redis.call('LPOS', KEYS[4], ARGV[1]) then
  redis.call('LPUSH', KEYS[4], ARGV[1])
end
return redis.call('ZCOUNT', KEYS[1], now - ARGV[3], '+inf') > 0 and 1 or 0
"""
)
# KEYS: live, answer. ARGV: id, kept (ms), event, data. Returns 0 when nobody waits for the answer any more.
_PUBLISH = (
    _NOW
    + """
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) < now then return 0 end
redis.call('XADD', KEYS[2], '*', 'event', ARGV[3], 'data', ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
"""
)
# KEYS: hosts. ARGV: host, after how long (ms) a silent one is forgotten.
_BEAT = (
    _NOW
    + """
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
"""
)

Admission = Literal["admitted", "nobody", "user", "full"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as a host receives it. `seconds`: how long its asker is willing to wait in all."""

    id: UUID
    user_id: int
    fine_tuning_id: int
    seconds: float
    question: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerEvent:
    """One step of an answer: `taken`, `token`, `done` or `failed`."""

    id: str
    name: str
    data: dict[str, Any]


class ServingQueue:
    """Every method raises RedisError or OSError when Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._admit = redis.register_script(_ADMIT)
        self._renew = redis.register_script(_RENEW)
        self._publish = redis.register_script(_PUBLISH)
        self._beat = redis.register_script(_BEAT)

    # The asker's side.

    async def admit(
        self,
        id: UUID,
        user_id: int,
        fine_tuning_id: int,
        question: Question,
        *,
        seconds: float,
        limits: tuple[int, int],
    ) -> Admission:
        """Puts a question into the queue, unless one of `limits` is reached: the user's own, and all users' together.

        'nobody': no serving process is alive.
        """
        asked = {
            "user_id": user_id,
            "fine_tuning_id": fine_tuning_id,
            "seconds": seconds,
            "question": question.as_command(),
        }
        arguments: list[Any] = [
            str(id),
            orjson.dumps(asked),
            _ms(LEASE_SECONDS),
            _ms(KEPT_SECONDS),
            _ms(HOST_SECONDS),
            *limits,
        ]
        found: Admission = await self._admit(keys=_keys(id, user_id), args=arguments)
        return found

    async def renew(self, id: UUID, user_id: int, host: str) -> bool:
        """Says that the asker still waits; False when the host (any host while none has taken it) is not alive."""
        arguments: list[Any] = [str(id), _ms(LEASE_SECONDS), _ms(HOST_SECONDS), host]
        return bool(await self._renew(keys=_keys(id, user_id), args=arguments))

    async def read(self, id: UUID, *, after: str) -> list[AnswerEvent]:
        """The events of an answer after an id; waits up to a second for the first."""
        found: Any = await self._redis.xread({_answer(id): after}, count=100, block=_BLOCK_MS)
        return [
            AnswerEvent(row_id, row["event"], orjson.loads(row["data"]))
            for _, rows in found or []
            for row_id, row in rows
        ]

    async def leave(self, id: UUID, user_id: int) -> None:
        """Nobody waits any more: question and answer go, and a host that still computes hears of it."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(_LIVE, str(id))
            pipe.zrem(_live_of(user_id), str(id))
            pipe.lrem(_WAITING, 0, str(id))
            pipe.delete(_request(id), _answer(id))
            await pipe.execute()

    # The host's side.

    async def beat(self, host: str) -> None:
        """Says that a host is alive."""
        await self._beat(keys=[_HOSTS], args=[host, _ms(KEPT_SECONDS)])

    async def retire(self, host: str) -> None:
        await self._redis.zrem(_HOSTS, host)

    async def next_id(self) -> str | None:
        """Waits up to a second for a question's id."""
        found: Any = await self._redis.blpop([_WAITING], timeout=1)
        return str(found[1]) if found else None

    async def claim(self, id: UUID, host: str) -> Asked | None:
        """The question, which is no longer in Redis then; None when its asker has left."""
        raw: Any = await self._redis.getdel(_request(id))
        if raw is None or not await self.publish(id, "taken", {"host": host}):
            return None
        return Asked(id=id, **orjson.loads(raw))

    async def publish(self, id: UUID, name: str, data: dict[str, Any]) -> bool:
        """Adds a step to an answer; False when nobody waits for it any more."""
        arguments: list[Any] = [str(id), _ms(KEPT_SECONDS), name, orjson.dumps(data)]
        return bool(await self._publish(keys=[_LIVE, _answer(id)], args=arguments))

    async def is_wanted(self, id: UUID) -> bool:
        lease, now = await asyncio.gather(self._redis.zscore(_LIVE, str(id)), self._redis.time())
        return lease is not None and float(lease) >= now[0] * 1000 + now[1] // 1000


def _keys(id: UUID, user_id: int) -> list[str]:
    return [_HOSTS, _LIVE, _live_of(user_id), _WAITING, _request(id)]


def _live_of(user_id: int) -> str:
    return f"{_LIVE}:{user_id}"


def _request(id: UUID) -> str:
    return f"serving:request:{id}"


def _answer(id: UUID) -> str:
    return f"serving:answer:{id}"


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
