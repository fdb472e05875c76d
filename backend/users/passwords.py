"""Password hashing by argon2id, off the event loop and never more than a few at once."""

import asyncio

from passlib.hash import argon2

_hasher = argon2.using(type="ID", memory_cost=19_456, time_cost=2, parallelism=1)
# 40 ms of CPU and 19 MB each: a burst of logins must not starve every other request of threads and memory.
_slots = asyncio.Semaphore(4)
# What an unknown e-mail address is checked against, so that it costs as long as a known one.
_DECOY = _hasher.hash("a password that nobody has")


async def hash_password(password: str) -> str:
    async with _slots:
        return str(await asyncio.to_thread(_hasher.hash, password))


async def verify_password(password: str, hashed: str | None) -> bool:
    """Compares in the same time whether or not there is a hash."""
    async with _slots:
        matches = bool(await asyncio.to_thread(_hasher.verify, password, hashed or _DECOY))
    return matches and hashed is not None
