"""A thousand random disconnects of clients that follow a job: gaps and repeats in what they received."""

import asyncio
import random
import secrets
import sys
import tempfile
from uuid import UUID

import httpx

from benchmarks.measure import Row, free_port, server

DISCONNECTS, CLIENTS, BATCH = 1000, 5, 20


def run() -> list[Row]:
    """Missing and repeated events over all clients (limit 1, at most 0)."""
    from backend.embedded.servers import temporary_servers
    from backend.kit import migrations

    with temporary_servers() as servers, tempfile.TemporaryDirectory() as folder:
        migrations.upgrade(servers.database_url)
        env = {
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "SECRET_KEY": secrets.token_urlsafe(48),
            "AUTH_MODE": "token",
            "DATA_DIR": folder,
            "LOG_LEVEL": "WARNING",
            "RATE_LIMITS": "false",
        }
        port = free_port()
        flags = ["--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--log-level", "warning"]
        command = [sys.executable, "-m", "uvicorn", "backend.main:app", *flags]
        with server(command, f"http://127.0.0.1:{port}/health", env):
            gaps, repeats = asyncio.run(_follow(port, servers.database_url, servers.redis_url))
    name = f"in {DISCONNECTS} disconnects"
    return [
        Row(f"events missed {name}", gaps, 1, "events", 0, "most"),
        Row(f"events repeated {name}", repeats, 1, "events", 0, "most"),
    ]


async def _follow(port: int, database_url: str, redis_url: str) -> tuple[int, int]:
    """Follows a job whose events are published meanwhile; returns missing and repeated events."""
    from backend.jobs.events import EventLog
    from backend.kit import redis as kit_redis
    from tests.api.sse_client import Follower

    redis = kit_redis.connect(redis_url)
    log = EventLog(redis)
    account = {"email": "bench@example.com", "password": "a long password", "name": "Bench"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits) as client:
        user = (await client.post("/api/auth/register", json=account)).json()["id"]
        login = await client.post("/api/auth/login", json={"username": account["email"], **account})
        client.headers["Authorization"] = f"Bearer {login.json()['access_token']}"
        job = await _running_job(database_url, user)
        each = DISCONNECTS // CLIENTS
        followers = [Follower(client, f"/jobs/{job}/events") for _ in range(CLIENTS)]
        reading = asyncio.gather(
            *[one.follow(disconnects=each, chance=random.Random(n)) for n, one in enumerate(followers)]
        )
        sent, chance = 0, random.Random(1)
        while min(one.disconnects for one in followers) < each:
            for _ in range(chance.randrange(1, BATCH) if sent < 9_000 else 0):  # the stream keeps ten thousand
                await log.publish(job, "log", {"n": sent, "line": "x" * chance.randrange(200)})
                sent += 1
            await asyncio.sleep(chance.uniform(0, 0.1))
        await log.publish(job, "complete", {"n": sent})
        await reading
    await redis.aclose()
    received = [[event.data["n"] for event in one.received] for one in followers]
    gaps = sum(len(set(range(sent + 1)) - set(numbers)) for numbers in received)
    return gaps, sum(len(numbers) - len(set(numbers)) for numbers in received)


async def _running_job(database_url: str, user_id: int) -> UUID:
    import backend.models  # noqa: F401  (every mapped class must be known before the first query)
    from backend.jobs.models import Job
    from backend.jobs.states import JobState
    from backend.kit.db import Database

    db = Database(database_url, pool_size=1)
    async with db.transaction() as session:
        job = Job(user_id=user_id, kind="bench", queue="default", state=JobState.RUNNING, max_attempts=1)
        session.add(job)
    await db.close()
    return job.public_id
