"""A job's events in Redis: in order from any point on, capped, and never a burden when Redis is away."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from backend.embedded.child import end_all, wait_ready
from backend.embedded.valkey import Valkey
from backend.jobs import events
from backend.jobs.events import EventLog, stream_key
from backend.kit import redis as kit_redis
from tests.jobs.conftest import Place


async def test_events_are_read_in_order_from_any_point_on(place: Place) -> None:
    job = uuid4()
    for number in range(50):
        await place.events.publish(job, "log", {"n": number})
    all_of_them = await place.events.read(job)
    assert [event.data["n"] for event in all_of_them] == list(range(50))
    for number, event in enumerate(all_of_them):
        rest = await place.events.read(job, after=event.id)
        assert [later.data["n"] for later in rest] == list(range(number + 1, 50))
    assert await place.events.find(job, all_of_them[7].id) == all_of_them[7]
    assert await place.events.find(job, "1-1") is None


async def test_a_stream_is_capped_and_expires(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "STREAM_LIMIT", 20)
    job = uuid4()
    for number in range(400):
        await place.events.publish(job, "log", {"n": number})
    assert [event.data["n"] for event in await place.events.read(job)][-1] == 399
    assert await place.redis.xlen(stream_key(job)) <= 20 + 100  # Redis drops a hundred at a time
    assert 0 < await place.redis.ttl(stream_key(job)) <= events.STREAM_DAYS * 86_400
    await place.events.delete(job)
    assert await place.events.read(job) == []


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    server = Valkey(tmp_path / "valkey", fast=True)
    server.prepare()
    server.launch()
    wait_ready([server], 20)
    yield server
    end_all([server])


async def test_a_redis_that_is_down_costs_a_job_next_to_nothing(valkey: Valkey) -> None:
    redis = kit_redis.connect(valkey.url())
    log, job = EventLog(redis), uuid4()
    await log.publish(job, "log", {"n": 0})
    assert valkey.process is not None
    valkey.process.kill()
    valkey.collect()
    started = time.monotonic()
    for number in range(100):
        await log.publish(job, "log", {"n": number})
    assert time.monotonic() - started < 1.5
    valkey.launch()
    wait_ready([valkey], 20)
    await log.publish(job, "log", {"n": "back"})
    assert [event.data["n"] for event in await log.read(job)] == ["back"]
    await redis.aclose()


async def test_a_redis_that_does_not_answer_costs_a_job_one_second_in_eleven(valkey: Valkey) -> None:
    redis = kit_redis.connect(valkey.url())
    log, job = EventLog(redis), uuid4()
    await log.publish(job, "log", {"n": 0})
    assert valkey.process is not None
    os.kill(valkey.process.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        for number in range(100):
            await log.publish(job, "log", {"n": number})
        assert time.monotonic() - started < 2 * events.PUBLISH_SECONDS
    finally:
        os.kill(valkey.process.pid, signal.SIGCONT)
    log._silent_until = 0.0  # instead of waiting for ten seconds
    await asyncio.sleep(0.2)
    await log.publish(job, "log", {"n": "back"})
    # No answer to an earlier command may be taken for the answer to this one.
    assert [event.data["n"] for event in await log.read(job)][-1] == "back"
    await redis.aclose()
