"""Job events over HTTP from a real server: no gap and no repeat, whatever happens to the connection."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import select, update

from backend.api import sse
from backend.api.sse import EventHub
from backend.embedded import processes
from backend.jobs.events import FIRST, EventLog, stream_key
from backend.jobs.models import Job
from backend.jobs.states import JobState
from backend.kit import redis as kit_redis
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.users.models import User
from tests.api.sse_client import Follower, events, whole
from tests.conftest import Tenant

REPOSITORY = Path(__file__).parents[2]
POOL = 2


@pytest.fixture(scope="module")
async def server(settings: Settings) -> AsyncIterator[str]:
    """The address of a server process whose pool has two connections."""
    port = processes.free_port()
    words = ["-m", "uvicorn", "backend.main:app", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    pool = {"DATABASE_POOL_SIZE": str(POOL), "DATABASE_MAX_OVERFLOW": "0"}
    process = subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, env={**os.environ, **pool})
    address = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient() as client:
        for _ in range(300):
            try:
                await client.get(f"{address}/health")
                break
            except httpx.TransportError:
                assert process.poll() is None
                await asyncio.sleep(0.1)
    yield address
    process.kill()
    process.wait()


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    client = kit_redis.connect(settings.redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def log(redis: Redis) -> EventLog:
    return EventLog(redis)


@pytest.fixture
async def client(server: str, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": tenant.client.headers["Authorization"]}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server, headers=headers, timeout=30, limits=limits) as made:
        yield made


@pytest.fixture
def make_job(db: Database, tenant: Tenant) -> Callable[[], Awaitable[Job]]:
    async def make(state: JobState = JobState.RUNNING, **fields: object) -> Job:
        async with db.transaction() as session:
            user_id = await session.scalar(select(User.id).where(User.email == tenant.email))
            job = Job(user_id=user_id, kind="test.sse", queue="default", state=state, max_attempts=1, **fields)
            session.add(job)
        return job

    return make


async def end(db: Database, job: Job) -> None:
    async with db.transaction() as session:
        await session.execute(update(Job).where(Job.id == job.id).values(state=JobState.SUCCESS, result={"n": -1}))


MakeJob = Callable[..., Awaitable[Job]]


async def test_two_hundred_disconnects_leave_no_gap_and_no_repeat(
    client: httpx.AsyncClient, db: Database, log: EventLog, make_job: MakeJob
) -> None:
    job, chance = await make_job(), random.Random(7)
    followers = [Follower(client, f"/jobs/{job.public_id}/events") for _ in range(4)]
    reading = asyncio.gather(*[one.follow(disconnects=50, chance=random.Random(n)) for n, one in enumerate(followers)])
    sent = 0
    while min(one.disconnects for one in followers) < 50:
        for _ in range(chance.randrange(1, 20)):
            await log.publish(job.public_id, "log", {"n": sent, "line": "x" * chance.randrange(200)})
            sent += 1
        await asyncio.sleep(chance.uniform(0, 0.1))
        assert sent < 9_000, "the stream keeps ten thousand"
    await end(db, job)
    await log.publish(job.public_id, "complete", {"n": sent})
    async with asyncio.timeout(60):
        await reading
    assert sum(one.disconnects for one in followers) == 200
    for one in followers:
        assert [event.data["n"] for event in one.received] == list(range(sent + 1))
        assert [event.name for event in one.received].count("complete") == 1


async def test_the_stream_ends_after_the_last_event_and_repeats_nothing(
    client: httpx.AsyncClient, db: Database, log: EventLog, make_job: MakeJob
) -> None:
    job = await make_job()
    await log.publish(job.public_id, "progress", {"progress_pct": 50})
    await end(db, job)
    await log.publish(job.public_id, "complete", {"status": "success"})
    answer = await client.get(f"/jobs/{job.public_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [event.name for event in whole(answer)] == ["progress", "complete"]
    last = (await log.read(job.public_id))[-1].id
    again = await client.get(f"/jobs/{job.public_id}/events", headers={"Last-Event-ID": last})
    assert (again.status_code, again.content) == (204, b"")


async def test_the_end_comes_from_the_database_when_redis_lost_the_stream(
    client: httpx.AsyncClient, db: Database, log: EventLog, redis: Redis, make_job: MakeJob
) -> None:
    job = await make_job()
    await log.publish(job.public_id, "progress", {"progress_pct": 50})
    async with client.stream("GET", f"/jobs/{job.public_id}/events") as answer:
        coming = events(answer)
        first = await anext(coming)
        await redis.delete(stream_key(job.public_id))
        await end(db, job)
        started = time.monotonic()
        last = await anext(coming)
        assert time.monotonic() - started < 5
        assert (first.name, last.name, last.data["status"], last.data["n"]) == ("progress", "complete", "success", -1)
        assert [event async for event in coming] == []
    again = await client.get(f"/jobs/{job.public_id}/events", headers={"Last-Event-ID": last.id})
    assert (again.status_code, again.content) == (204, b"")
    # What comes after an end that the stream did not have is told all the same.
    await log.publish(job.public_id, "complete", {"status": "success"})
    late = await client.get(f"/jobs/{job.public_id}/events", headers={"Last-Event-ID": last.id})
    assert [event.name for event in whole(late)] == ["complete"]


async def test_whoever_misses_the_last_event_only_still_gets_it(
    client: httpx.AsyncClient, db: Database, log: EventLog, make_job: MakeJob
) -> None:
    job = await make_job()
    await log.publish(job.public_id, "progress", {"progress_pct": 50})
    await end(db, job)
    await log.publish(job.public_id, "complete", {"status": "success"})
    seen = (await log.read(job.public_id))[0].id
    answer = await client.get(f"/jobs/{job.public_id}/events", headers={"Last-Event-ID": seen})
    assert [event.name for event in whole(answer)] == ["complete"]


async def test_the_last_event_says_how_long_it_took_in_whole_seconds(
    client: httpx.AsyncClient, db: Database, make_job: MakeJob
) -> None:
    started = datetime(2026, 2, 14, 10, tzinfo=UTC)
    times = {"started_at": started, "finished_at": started + timedelta(seconds=7200.4)}
    job = await make_job(JobState.SUCCESS, result={"final_train_loss": 0.32}, **times)
    answer = await client.get(f"/jobs/{job.public_id}/events")
    (last,) = whole(answer)
    assert last.name == "complete"
    assert last.data == {"status": "success", "duration_seconds": 7200, "final_train_loss": 0.32}
    assert isinstance(last.data["duration_seconds"], int)


@pytest.mark.parametrize(
    "garbage",
    ["", "abc", "5", "-1-0", "0-0-0", "$", "+", "99999999999999999999-0", "1-18446744073709551616", "١-٢"],
)
async def test_a_garbage_last_event_id_means_from_the_start(
    client: httpx.AsyncClient, db: Database, log: EventLog, make_job: MakeJob, garbage: str
) -> None:
    job = await make_job()
    await log.publish(job.public_id, "progress", {"progress_pct": 50})
    await end(db, job)
    await log.publish(job.public_id, "complete", {"status": "success"})
    headers = [(b"Last-Event-ID", garbage.encode())]
    answer = await client.get(f"/jobs/{job.public_id}/events", headers=headers)
    assert answer.status_code == 200
    assert [event.name for event in whole(answer)] == ["progress", "complete"]


async def test_a_far_off_id_keeps_no_other_client_asleep(
    client: httpx.AsyncClient, log: EventLog, make_job: MakeJob
) -> None:
    job = await make_job()
    path = f"/jobs/{job.public_id}/events"
    far = {"Last-Event-ID": "18446744073709551615-18446744073709551614"}
    async with client.stream("GET", path, headers=far), client.stream("GET", path) as answer:
        coming = events(answer)
        await asyncio.sleep(0.5)
        slowest = 0.0
        for number in range(5):
            started = time.monotonic()
            await log.publish(job.public_id, "log", {"n": number})
            assert (await anext(coming)).data == {"n": number}
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 1.0, "woken by the reader, not by the look every two seconds"


async def test_another_tenants_job_is_not_there(
    server: str, make_job: MakeJob, make_tenant: Callable[[], Awaitable[Tenant]]
) -> None:
    job, stranger = await make_job(), await make_tenant()
    headers = {"Authorization": stranger.client.headers["Authorization"]}
    async with httpx.AsyncClient(base_url=server) as client:
        answer = await client.get(f"/jobs/{job.public_id}/events", headers=headers)
        assert (answer.status_code, answer.json()["error_code"]) == (404, "JOB_NOT_FOUND")
        assert (await client.get(f"/jobs/{job.public_id}/events")).status_code == 401


async def test_open_streams_hold_no_database_connection(
    client: httpx.AsyncClient, db: Database, log: EventLog, make_job: MakeJob
) -> None:
    job = await make_job()
    path = f"/jobs/{job.public_id}/events"
    answers = [await client.send(client.build_request("GET", path), stream=True) for _ in range(POOL * 10)]
    try:
        assert {answer.status_code for answer in answers} == {200}
        for _ in range(10):
            started = time.monotonic()
            assert (await client.get(f"/jobs/{job.public_id}")).status_code == 200
            assert time.monotonic() - started < 2
        await log.publish(job.public_id, "log", {"n": 1})
        for answer in answers:
            assert (await anext(events(answer))).data == {"n": 1}
    finally:
        for answer in answers:
            await answer.aclose()


async def nobody() -> None:
    return None


async def test_many_subscribers_share_one_reader(redis: Redis, log: EventLog) -> None:
    hub, jobs = EventHub(redis), [UUID(int=number) for number in range(20)]
    told: list[bytes] = []

    async def subscribe(job: UUID) -> None:
        async for data in sse.stream(log, hub, job, after=FIRST, end_of=nobody):
            told.append(data)  # noqa: PERF401 - what has come so far counts

    subscribers = [asyncio.create_task(subscribe(job)) for job in jobs for _ in range(3)]
    await asyncio.sleep(0.5)
    blocked = [(await redis.info("clients"))["blocked_clients"] for _ in range(20)]
    # Other tests' servers and workers read from the same Redis: some, but not sixty.
    assert max(blocked) < 10
    for job in jobs:
        await log.publish(job, "log", {"n": 1})
    await asyncio.sleep(1)
    assert sum(b"event: log" in data for data in told) == 60
    for task in subscribers:
        task.cancel()
    await asyncio.gather(*subscribers, return_exceptions=True)
    await hub.close()
    await redis.delete(*[stream_key(job) for job in jobs])


async def test_a_silent_stream_has_heartbeats(redis: Redis, log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.3)
    monkeypatch.setattr(sse, "RECHECK_SECONDS", 0.1)
    hub = EventHub(redis)
    stream = sse.stream(log, hub, UUID(int=99), after=FIRST, end_of=nobody)
    assert await anext(stream) == b"retry: 2000\n\n"
    started = time.monotonic()
    assert [await anext(stream) for _ in range(2)] == [b": heartbeat\n\n"] * 2  # type: ignore[comparison-overlap]
    assert 0.5 < time.monotonic() - started < 3
    await stream.aclose()  # type: ignore[attr-defined]
    await hub.close()


async def test_a_stream_outlives_a_database_that_is_away(redis: Redis, log: EventLog) -> None:
    async def away() -> None:
        raise ConnectionRefusedError("no database")

    hub, job = EventHub(redis), UUID(int=98)
    stream = sse.stream(log, hub, job, after=FIRST, end_of=away)
    await anext(stream)
    coming = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.5)
    await log.publish(job, "log", {"n": 1})
    assert b'{"n":1}' in await asyncio.wait_for(coming, 5)
    await stream.aclose()  # type: ignore[attr-defined]
    await hub.close()
    await redis.delete(stream_key(job))


async def test_a_stream_has_a_last_minute(redis: Redis, log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LIFETIME_SECONDS", 0.5)
    monkeypatch.setattr(sse, "RECHECK_SECONDS", 0.1)
    hub = EventHub(redis)
    async with asyncio.timeout(3):
        assert [data async for data in sse.stream(log, hub, UUID(int=97), after=FIRST, end_of=nobody)] == [
            b"retry: 2000\n\n"
        ]
    await hub.close()


async def test_the_reader_goes_on_after_redis_dropped_its_connection(
    settings: Settings, redis: Redis, log: EventLog
) -> None:
    own, job = kit_redis.connect(f"{settings.redis_url}?client_name=dropped"), UUID(int=96)
    hub = EventHub(own)
    async with hub.wakes(job, after=FIRST) as wake:
        await asyncio.sleep(0.3)
        mine = [found["id"] for found in await redis.client_list() if found["name"] == "dropped"]
        assert mine
        for number in mine:
            await redis.client_kill_filter(_id=number)
        await log.publish(job, "log", {"n": 1})
        await asyncio.wait_for(wake.wait(), 3)
    await hub.close()
    await own.aclose()
    await redis.delete(stream_key(job))


def test_ids_compare_as_numbers() -> None:
    assert sse.resume_point("10-2") == "10-2"
    assert max(["9-10", "9-9", "10-1"], key=sse._parts) == "10-1"
