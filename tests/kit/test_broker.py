"""Sending a message is bounded: a broker that is down or frozen must not hold up a request."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from backend.embedded.child import end_all, wait_ready
from backend.embedded.valkey import Valkey
from backend.kit import redis as kit_redis
from backend.kit.broker import SEND_SECONDS, Broker


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    server = Valkey(tmp_path / "valkey", fast=True)
    server.prepare()
    server.launch()
    wait_ready([server], 20)
    yield server
    end_all([server])


@pytest.fixture
async def broker(valkey: Valkey) -> AsyncIterator[Broker]:
    made = Broker(valkey.url())
    assert await made.send("some.task", "default", 0)
    yield made
    made.close()


def kill(valkey: Valkey) -> None:
    assert valkey.process is not None
    valkey.process.kill()
    valkey.collect()


def restart(valkey: Valkey) -> None:
    valkey.launch()
    wait_ready([valkey], 20)


async def test_a_message_carries_the_job_id_and_nothing_else(broker: Broker, valkey: Valkey) -> None:
    redis = kit_redis.connect(valkey.url())
    await redis.delete("default")
    assert await broker.send("some.task", "default", 17)
    (message,) = await redis.lrange("default", 0, -1)
    await redis.aclose()
    assert orjson.loads(message)["headers"]["argsrepr"] == "(17,)"
    assert orjson.loads(message)["headers"]["kwargsrepr"] == "{}"


async def test_a_broker_that_is_down_is_told_at_once(broker: Broker, valkey: Valkey) -> None:
    kill(valkey)
    for sender in (broker, Broker(valkey.url())):
        started = time.monotonic()
        assert [await sender.send("some.task", "default", number) for number in range(5)] == [False] * 5
        assert time.monotonic() - started < 1
    restart(valkey)
    assert [await broker.send("some.task", "default", number) for number in range(5)] == [True] * 5


async def test_a_broker_that_was_restarted_takes_the_next_message(broker: Broker, valkey: Valkey) -> None:
    await asyncio.gather(*[broker.send("some.task", "default", number) for number in range(20)])
    kill(valkey)
    restart(valkey)
    assert await asyncio.gather(*[broker.send("some.task", "default", number) for number in range(20)]) == [True] * 20


async def test_a_broker_that_does_not_answer_holds_nobody_up(broker: Broker, valkey: Valkey) -> None:
    assert valkey.process is not None
    os.kill(valkey.process.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        sending = [broker.send("some.task", "default", number) for number in range(30)]
        assert await asyncio.gather(*sending) == [False] * 30
        assert time.monotonic() - started < SEND_SECONDS + 1
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 1) == "free"
    finally:
        os.kill(valkey.process.pid, signal.SIGCONT)
    await asyncio.sleep(1)
    assert await broker.send("some.task", "default", 1)
