"""A job's run from claim to end, with the worker's own code: success, failure, retry, cancel, lost lease, a stop."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update

from backend.jobs.errors import LeaseLost
from backend.jobs.models import Job
from backend.jobs.running import JobRun
from backend.jobs.states import ENDED, JobState
from backend.kit.config import Settings
from backend.kit.errors import DomainError, Unavailable
from celery_app import runtime, stopping
from celery_app.job_task import run_job
from celery_app.runtime import Runtime
from tests.jobs.conftest import ENDINGS, Place, ended

Code = Callable[[JobRun], Awaitable[dict[str, Any]]]
Run = Callable[[Job, Code], "asyncio.Future[None]"]


@pytest.fixture
async def run(place: Place, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    """Starts a job in a thread, as a worker process would run it; awaited, it gives None when the run is over."""
    monkeypatch.setattr(settings, "database_url", place.db.engine.url.render_as_string(hide_password=False))
    monkeypatch.setattr(settings, "redis_url", place.redis_url)
    monkeypatch.setattr(runtime, "_current", None)

    def start(job: Job, code: Code) -> "asyncio.Future[None]":
        async def work(run: JobRun, _current: Runtime) -> dict[str, Any]:
            return await code(run)

        return asyncio.get_running_loop().run_in_executor(thread, run_job, job.id, work)

    with ThreadPoolExecutor(1) as thread:
        yield start
        thread.submit(runtime.close).result()


async def until(place: Place, job: Job, *states: JobState, patience: float = 10.0) -> float:
    """Waits until the job is in one of the states; returns the seconds that it took."""
    started = time.monotonic()
    while (await place.row(job)).state not in states:
        assert time.monotonic() - started < patience, f"still {(await place.row(job)).state}"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def names(place: Place, job: Job) -> list[str]:
    return [event.name for event in await place.events.read(job.public_id)]


async def sleep_long(run: JobRun) -> dict[str, Any]:
    await asyncio.sleep(60)
    return {}


async def test_success(place: Place, run: Run) -> None:
    async def code(run: JobRun) -> dict[str, Any]:
        await run.progress(50, "half", force=True)
        return {"chunks": 3}

    job = await place.enqueue()
    await run(job, code)
    row = await place.row(job)
    assert (row.state, row.result, row.progress_pct, row.attempts) == (JobState.SUCCESS, {"chunks": 3}, 100.0, 1)
    assert [(job.id, JobState.SUCCESS)] == ENDINGS
    events = await place.events.read(job.public_id)
    assert [event.name for event in events] == ["progress", "complete"]
    assert events[-1].data["chunks"] == 3


async def test_an_ended_job_does_not_run_again(place: Place, run: Run) -> None:
    runs: list[int] = []

    async def code(run: JobRun) -> dict[str, Any]:
        runs.append(run.claim.fence)
        return {}

    job = await place.enqueue()
    await run(job, code)
    await run(job, code)
    assert runs == [1]


async def test_an_expected_error_ends_the_job_with_its_code(place: Place, run: Run) -> None:
    async def code(run: JobRun) -> dict[str, Any]:
        raise DomainError("Choose a smaller model.")

    job = await place.enqueue()
    await run(job, code)
    row = await place.row(job)
    assert ended(row) == (JobState.FAILED, "BAD_REQUEST")
    assert row.error_message == "Choose a smaller model."
    assert (row.attempts, ENDINGS) == (1, [(job.id, JobState.FAILED)])


async def test_an_expected_error_inside_a_task_group_keeps_its_code(place: Place, run: Run) -> None:
    async def fail() -> None:
        raise DomainError("Choose a smaller model.")

    async def code(run: JobRun) -> dict[str, Any]:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(sleep_long(run))
        return {}

    job = await place.enqueue()
    await run(job, code)
    assert ended(await place.row(job)) == (JobState.FAILED, "BAD_REQUEST")


@pytest.mark.parametrize("error", [Unavailable("The model is busy."), ConnectionResetError("gone")])
async def test_a_passing_error_is_tried_again_with_a_pause(place: Place, run: Run, error: Exception) -> None:
    async def code(run: JobRun) -> dict[str, Any]:
        if run.claim.attempts == 1:
            raise error
        return {"attempt": run.claim.attempts}

    job = await place.enqueue()
    await run(job, code)
    row = await place.row(job)
    assert (row.state, row.attempts) == (JobState.QUEUED, 1)
    assert row.message.startswith("Attempt 1 of 3 failed; the next one is in 2 s. ")
    assert row.message.endswith("The model is busy." if isinstance(error, Unavailable) else "needs is away.")
    told = await place.events.read(job.public_id)
    assert [(event.name, event.data) for event in told] == [("log", {"message": row.message})]
    await run(job, code)
    assert (await place.row(job)).attempts == 1, "it must wait for two seconds"
    await asyncio.sleep(2.1)
    assert await place.sweep() == 1
    await run(job, code)
    row = await place.row(job)
    assert (row.state, row.result) == (JobState.SUCCESS, {"attempt": 2})


async def test_a_passing_error_that_does_not_pass_ends_the_job(place: Place, run: Run) -> None:
    async def code(run: JobRun) -> dict[str, Any]:
        raise Unavailable("The model is busy. Try later.")

    job = await place.enqueue()
    for _ in range(3):
        await place.set(job, available_at=None)
        await run(job, code)
    row = await place.row(job)
    assert ended(row) == (JobState.FAILED, "SERVICE_UNAVAILABLE")
    assert (row.error_message, row.attempts) == ("The model is busy. Try later.", 3)


@pytest.mark.parametrize(
    "error",
    [ValueError("secret-canary"), FileNotFoundError(2, "secret-canary"), asyncio.CancelledError("canary")],
)
async def test_an_unexpected_error_tells_nothing_of_its_details(place: Place, run: Run, error: BaseException) -> None:
    async def code(run: JobRun) -> dict[str, Any]:
        raise error

    job = await place.enqueue()
    await run(job, code)
    row = await place.row(job)
    assert ended(row) == (JobState.FAILED, "INTERNAL_ERROR")
    assert str(job.public_id) in str(row.error_message)
    told = [str(event.data) for event in await place.events.read(job.public_id)]
    assert "secret-canary" not in "".join([str(row.error_message), str(row.message), *told])


async def test_a_cancel_is_obeyed_within_two_seconds(place: Place, run: Run) -> None:
    job = await place.enqueue()
    running = run(job, sleep_long)
    await until(place, job, JobState.RUNNING)
    await place.cancel(job)
    assert await until(place, job, JobState.CANCELLED) < 2.0
    await running
    assert await names(place, job) == ["complete"]
    assert [(job.id, JobState.CANCELLED)] == ENDINGS


async def test_a_cancel_right_after_the_claim_is_obeyed(place: Place, run: Run) -> None:
    job = await place.enqueue()

    async def code(run: JobRun) -> dict[str, Any]:
        asyncio.run_coroutine_threadsafe(place.cancel(job), main)
        return await sleep_long(run)

    main = asyncio.get_running_loop()
    running = run(job, code)
    await until(place, job, JobState.RUNNING)
    assert await until(place, job, JobState.CANCELLED) < 2.5
    await running


async def test_an_error_out_of_a_cancelled_run_is_still_a_cancel(place: Place, run: Run) -> None:
    async def code(run: JobRun) -> dict[str, Any]:
        try:
            return await sleep_long(run)
        except asyncio.CancelledError:
            raise Unavailable("the child was killed") from None

    job = await place.enqueue()
    running = run(job, code)
    await until(place, job, JobState.RUNNING)
    await place.cancel(job)
    await running
    assert (await place.row(job)).state == JobState.CANCELLED


async def test_a_cancelled_job_keeps_its_lease_while_it_cleans_up(
    place: Place, run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "job_lease_seconds", 2.0)
    cleaned = asyncio.Event()
    main = asyncio.get_running_loop()

    async def code(run: JobRun) -> dict[str, Any]:
        try:
            return await sleep_long(run)
        finally:
            await asyncio.sleep(4)
            main.call_soon_threadsafe(cleaned.set)

    job = await place.enqueue()
    running = run(job, code)
    await until(place, job, JobState.RUNNING)
    await place.cancel(job)
    while not cleaned.is_set():
        assert (await place.row(job)).state == JobState.RUNNING
        await place.sweep()
        await asyncio.sleep(0.2)
    await running
    row = await place.row(job)
    assert (row.state, row.fence) == (JobState.CANCELLED, 1)


async def test_a_job_that_blocks_its_loop_is_cancelled_from_outside_and_writes_nothing_more(
    place: Place, run: Run
) -> None:
    refused: list[type[BaseException]] = []

    async def code(run: JobRun) -> dict[str, Any]:
        time.sleep(5)  # deaf
        for write in (run.progress(90, "still there", force=True), run.progress(91, "and again", force=True)):
            try:
                await write
            except (asyncio.CancelledError, LeaseLost) as error:
                refused.append(type(error))
        return {"from": "the dead"}

    job = await place.enqueue()
    running = run(job, code)
    await until(place, job, JobState.RUNNING)
    await place.cancel(job)
    assert await until(place, job, JobState.CANCELLED) < 2.0
    assert not running.done()
    await running
    row = await place.row(job)
    assert refused == [asyncio.CancelledError, LeaseLost]
    assert (row.state, row.result, row.message) == (JobState.CANCELLED, None, "")
    assert await names(place, job) == ["complete"]
    assert [(job.id, JobState.CANCELLED)] == ENDINGS


async def test_a_job_that_blocks_its_loop_does_not_lose_its_lease(
    place: Place, run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "job_lease_seconds", 2.0)

    async def code(run: JobRun) -> dict[str, Any]:
        time.sleep(5)
        return {}

    job = await place.enqueue()
    running = run(job, code)
    while not running.done():
        await place.sweep()
        await asyncio.sleep(0.2)
    row = await place.row(job)
    assert (row.state, row.attempts, row.fence) == (JobState.SUCCESS, 1, 1)


async def test_a_run_that_lost_its_lease_is_stopped_and_leaves_the_job_to_its_heir(place: Place, run: Run) -> None:
    stopped = asyncio.Event()
    main = asyncio.get_running_loop()

    async def code(run: JobRun) -> dict[str, Any]:
        try:
            return await sleep_long(run)
        finally:
            main.call_soon_threadsafe(stopped.set)

    job = await place.enqueue()
    running = run(job, code)
    await until(place, job, JobState.RUNNING)
    await place.expire(job)
    await place.sweep()
    heir = await place.claim(job)
    async with asyncio.timeout(2.5):
        await stopped.wait()
    await running
    row = await place.row(job)
    assert (row.state, row.fence, row.worker) == (JobState.RUNNING, heir.fence, "w")
    assert await names(place, job) == []


async def test_a_worker_that_stops_puts_its_job_back_without_counting_the_attempt(place: Place, run: Run) -> None:
    job = await place.enqueue()
    running = run(job, sleep_long)
    await until(place, job, JobState.RUNNING)
    try:
        stopping.announce()
        assert await until(place, job, JobState.QUEUED) < 2.0
        await running
    finally:
        stopping._flag[0] = 0
    row = await place.row(job)
    assert (row.attempts, row.worker, row.dispatched_at) == (0, None, None)
    await place.redis.flushdb()
    assert await place.sweep() == 1


async def test_a_cancel_wins_over_a_stop(place: Place, run: Run) -> None:
    job = await place.enqueue()
    running = run(job, sleep_long)
    await until(place, job, JobState.RUNNING)
    try:
        await place.cancel(job)
        stopping.announce()
        await until(place, job, *ENDED)
        await running
    finally:
        stopping._flag[0] = 0
    assert (await place.row(job)).state == JobState.CANCELLED


async def test_attempts_that_a_run_has_earned_count_when_it_fails(place: Place, run: Run) -> None:
    """The claim says the last attempt, but the run has got on since, and its row says so."""

    async def code(run: JobRun) -> dict[str, Any]:
        assert run.claim.attempts == run.claim.max_attempts
        async with run.writing() as session:
            await session.execute(update(Job).where(Job.id == run.claim.id).values(attempts=1))
        raise Unavailable("The model is busy.")

    job = await place.enqueue()
    await place.set(job, attempts=2)
    await run(job, code)
    row = await place.row(job)
    assert (row.state, row.attempts) == (JobState.QUEUED, 1)
    assert row.message.startswith("Attempt 1 of 3 failed; the next one is in 2 s. ")


async def test_an_error_that_is_none_of_the_job_costs_no_attempt(place: Place, run: Run) -> None:
    class Elsewhere(DomainError):
        retryable = True
        costs_attempt = False
        template = "Another worker can do it."

    async def code(run: JobRun) -> dict[str, Any]:
        raise Elsewhere()

    job = await place.enqueue()
    await place.set(job, attempts=2)
    await run(job, code)
    row = await place.row(job)
    assert (row.state, row.attempts) == (JobState.QUEUED, 2)
    assert "Another worker can do it." in row.message
    waiting = (row.available_at - row.created_at).total_seconds()
    assert waiting > 15, "who cannot do it does not ask again and again"
