"""What the sweeper finds again: lost workers, lost messages, and jobs that nobody would ever end."""

import asyncio
import time

import pytest
from sqlalchemy import text

from backend.embedded import processes
from backend.jobs import kinds, service
from backend.jobs.kinds import JobKind
from backend.jobs.states import JobState
from backend.kit import redis as kit_redis
from backend.kit.broker import Broker
from tests.jobs.conftest import ENDINGS, Place, ended

LONG_AGO = text("clock_timestamp() - interval '1 hour'")


async def test_a_job_whose_lease_ran_out_runs_again(place: Place) -> None:
    job = await place.enqueue()
    await place.claim(job)
    assert await place.sweep() == 0
    assert (await place.row(job)).state == JobState.RUNNING
    await place.expire(job)
    await place.redis.flushdb()
    assert await place.sweep() == 1
    row = await place.row(job)
    assert (row.state, row.attempts, row.worker) == (JobState.QUEUED, 1, None)
    assert await place.messages() == 1
    assert (await place.claim(job)).fence == 2


async def test_a_job_that_loses_its_worker_again_and_again_waits_before_it_runs(place: Place) -> None:
    job = await place.enqueue()
    await place.claim(job)
    await place.set(job, attempts=2)
    await place.expire(job)
    assert await place.sweep() == 0
    await asyncio.sleep(1.1)
    assert await place.sweep() == 1


async def test_a_job_that_lost_every_worker_is_a_dead_letter(place: Place) -> None:
    job = await place.enqueue()
    for attempt in (1, 2, 3):
        await place.set(job, available_at=None)
        assert (await place.claim(job)).attempts == attempt
        await place.expire(job)
        await place.sweep()
    row = await place.row(job)
    assert ended(row) == (JobState.FAILED, "JOB_GAVE_UP")
    assert row.finished_at is not None
    assert [(job.id, JobState.FAILED)] == ENDINGS
    assert [(event.name, event.data["error_code"]) for event in await place.events.read(job.public_id)] == [
        ("error", "JOB_GAVE_UP")
    ]


async def test_a_cancelled_job_whose_worker_is_gone_is_ended(place: Place) -> None:
    job = await place.enqueue()
    await place.claim(job)
    await place.cancel(job)
    await place.sweep()
    assert (await place.row(job)).state == JobState.RUNNING
    await place.expire(job)
    await place.sweep()
    assert (await place.row(job)).state == JobState.CANCELLED
    assert [(job.id, JobState.CANCELLED)] == ENDINGS


async def test_a_queued_job_with_a_request_to_cancel_is_ended(place: Place) -> None:
    job = await place.enqueue()
    await place.set(job, cancel_requested_at=LONG_AGO)
    await place.sweep()
    assert (await place.row(job)).state == JobState.CANCELLED


async def test_one_job_that_cannot_be_ended_keeps_no_other_from_its_rescue(place: Place) -> None:
    unknown = await place.enqueue(JobKind("test.of_another_version", "default", max_attempts=1))
    broken = await place.enqueue(params={"ending": "fails"})
    lost, hopeless = await place.enqueue(), await place.enqueue()
    for job in (unknown, broken, lost, hopeless):
        await place.claim(job)
        await place.expire(job)
    await place.set(broken, attempts=3)
    await place.set(hopeless, attempts=3)
    assert await place.sweep() == 1
    assert (await place.row(lost)).state == JobState.QUEUED
    assert ended(await place.row(hopeless)) == (JobState.FAILED, "JOB_GAVE_UP")
    for job in (unknown, broken):
        assert (await place.row(job)).state == JobState.RUNNING


async def test_a_lost_message_is_sent_again_but_not_too_soon(place: Place) -> None:
    job = await place.enqueue()
    await place.redis.flushdb()
    assert await place.sweep() == 0
    await place.set(job, dispatched_at=text("clock_timestamp() - interval '11 seconds'"))
    assert await place.sweep() == 1
    assert await place.messages() == 1
    await place.redis.flushdb()
    await place.set(job, dispatched_at=text("clock_timestamp() - interval '11 seconds'"))
    assert await place.sweep() == 0  # the second time it waits for twenty seconds
    await place.set(job, dispatched_at=text("clock_timestamp() - interval '21 seconds'"))
    assert await place.sweep() == 1


async def test_a_thousand_messages_for_one_job_do_not_stop_the_sweeper(place: Place) -> None:
    """2^1023 is the last power that PostgreSQL has: a naive backoff would fail every sweep from then on."""
    job = await place.enqueue()
    await place.redis.flushdb()
    await place.set(job, dispatches=5000, dispatched_at=LONG_AGO)
    assert await place.sweep() == 1


async def test_nothing_is_sent_again_while_every_job_has_its_message(place: Place) -> None:
    jobs = [await place.enqueue() for _ in range(5)]
    for job in jobs:
        await place.set(job, dispatched_at=LONG_AGO)
    assert await place.sweep() == 0
    assert await place.messages() == 5
    await place.redis.lpop("default")
    assert await place.sweep() == 5


async def test_a_job_that_waits_to_be_sent_does_not_make_the_others_look_lost(place: Place) -> None:
    jobs = [await place.enqueue() for _ in range(3)]
    for job in jobs:
        await place.set(job, dispatched_at=LONG_AGO)
    waiting = await place.enqueue()
    await place.redis.lpop("default")
    await place.set(waiting, dispatched_at=None)
    assert await place.sweep() == 1
    assert await place.messages() == 4


async def test_a_tick_that_comes_twice_sweeps_once(place: Place) -> None:
    job = await place.enqueue()
    await place.claim(job)
    await place.expire(job)
    year = 86_400 * 365
    sent = await asyncio.gather(
        *[service.sweep(place.db, place.broker, place.redis, period_seconds=year, resend_seconds=10) for _ in range(5)]
    )
    assert sorted(sent) == [0, 0, 0, 0, 1]


async def test_without_redis_a_sweep_is_quick_and_the_next_one_sends(place: Place) -> None:
    jobs = [await place.enqueue() for _ in range(20)]
    for job in jobs:
        await place.claim(job)
        await place.expire(job)
    await place.redis.flushdb()
    nowhere = f"redis://127.0.0.1:{processes.free_port()}/0"
    broker, redis = Broker(nowhere), kit_redis.connect(nowhere)
    started = time.monotonic()
    assert await service.sweep(place.db, broker, redis, period_seconds=0.001, resend_seconds=10) == 0
    assert time.monotonic() - started < 3
    broker.close()
    await redis.aclose()
    assert {(await place.row(job)).state for job in jobs} == {JobState.QUEUED}
    assert await place.sweep() == 20
    assert await place.messages() == 20


async def test_two_sweeps_at_once_send_each_job_once(place: Place) -> None:
    jobs = [await place.enqueue() for _ in range(60)]
    await place.redis.flushdb()
    for job in jobs:
        await place.claim(job)
        await place.expire(job)
    sent = await asyncio.gather(
        *[service.sweep(place.db, place.broker, place.redis, period_seconds=1e-6, resend_seconds=10) for _ in range(4)]
    )
    assert sum(sent) == await place.messages()
    assert {(await place.row(job)).dispatches for job in jobs} == {1}


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(AssertionError, match="twice"):
        kinds.register(JobKind("test.work", "default"))
