"""Enqueue, claim, fence, cancel and put back, against the real database and under concurrency."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select

from backend.jobs import queue, service
from backend.jobs.errors import JobAlreadyEnded, JobAlreadyRunning, LeaseLost
from backend.jobs.models import Job
from backend.jobs.queue import Claim
from backend.jobs.running import JobRun
from backend.jobs.states import JobState
from tests.jobs.conftest import ENDINGS, WORK, Place


async def test_the_message_leaves_after_the_commit(place: Place) -> None:
    async with place.db.transaction() as session:
        await queue.enqueue(session, place.broker, WORK, user_id=place.user_id, project_id=None)
        await session.flush()
        assert await place.messages() == 0
    assert await place.messages() == 1


async def test_no_message_leaves_when_the_transaction_fails(place: Place) -> None:
    async def fail() -> None:
        async with place.db.transaction() as session:
            await queue.enqueue(session, place.broker, WORK, user_id=place.user_id, project_id=None)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await fail()
    assert await place.messages() == 0
    async with place.db.transaction() as session:
        assert await session.scalar(select(func.count()).select_from(Job)) == 0


async def test_two_live_jobs_never_share_an_exclusive_key(place: Place) -> None:
    answers = await asyncio.gather(*[place.enqueue(exclusive_key="train:1") for _ in range(8)], return_exceptions=True)
    assert sum(isinstance(answer, Job) for answer in answers) == 1
    assert sum(isinstance(answer, JobAlreadyRunning) for answer in answers) == 7
    assert await place.messages() == 1


async def test_the_key_is_free_again_after_the_end(place: Place) -> None:
    first = await place.enqueue(exclusive_key="train:1")
    await place.cancel(first)
    assert (await place.enqueue(exclusive_key="train:1")).id != first.id


async def test_of_fifty_claims_one_wins(place: Place) -> None:
    job = await place.enqueue()

    async def claim(number: int) -> Claim | None:
        async with place.db.transaction() as session:
            return await queue.claim(session, job.id, worker=str(number), lease_seconds=60)

    claims = [claim for claim in await asyncio.gather(*[claim(n) for n in range(50)]) if claim]
    assert [(claim.fence, claim.attempts) for claim in claims] == [(1, 1)]


async def test_a_job_is_not_claimed_before_its_time(place: Place) -> None:
    job = await place.enqueue()
    first = await place.claim(job)
    async with place.db.transaction() as session:
        assert await queue.put_back(session, first, delay_seconds=60, counts=True) is None
        assert await queue.claim(session, job.id, worker="w", lease_seconds=60) is None


@pytest.mark.parametrize("counts", [True, False])
async def test_put_back_gives_the_attempt_back_only_to_a_stopped_worker(place: Place, counts: bool) -> None:
    job = await place.enqueue()
    claim = await place.claim(job)
    async with place.db.transaction() as session:
        await queue.put_back(session, claim, delay_seconds=0, counts=counts)
    row = await place.row(job)
    assert (row.state, row.attempts, row.worker, row.lease_until) == (JobState.QUEUED, int(counts), None, None)
    assert (await place.claim(job)).fence == claim.fence + 1


async def test_put_back_ends_a_job_whose_cancel_was_asked_for(place: Place) -> None:
    """Queued with a request to cancel, it could never be claimed and would never end."""
    job = await place.enqueue()
    claim = await place.claim(job)
    assert (await place.cancel(job)).state == JobState.RUNNING
    async with place.db.transaction() as session:
        ended = await queue.put_back(session, claim, delay_seconds=5, counts=True)
    assert ended is not None
    assert ended.state == JobState.CANCELLED
    assert [(job.id, JobState.CANCELLED)] == ENDINGS


Write = Callable[[Place, Claim], Awaitable[object]]


async def _renew(place: Place, claim: Claim) -> object:
    async with place.db.transaction() as session:
        return await queue.renew(session, claim, lease_seconds=60)


async def _report(place: Place, claim: Claim) -> object:
    async with place.db.transaction() as session:
        return await queue.report(session, claim, progress_pct=99, message="from the dead")


async def _finish(place: Place, claim: Claim) -> object:
    async with place.db.transaction() as session:
        return await queue.finish(session, claim, JobState.SUCCESS, result={"from": "the dead"})


async def _put_back(place: Place, claim: Claim) -> object:
    async with place.db.transaction() as session:
        return await queue.put_back(session, claim, delay_seconds=0, counts=True)


async def _write(place: Place, claim: Claim) -> object:
    async with JobRun(place.db, place.events, claim).writing() as session:
        session.add(Job(user_id=place.user_id, kind="test.work", queue="default", max_attempts=1))
    return None


@pytest.mark.parametrize("write", [_renew, _report, _finish, _put_back, _write])
@pytest.mark.parametrize("state", ["taken over", "queued again", "ended"])
async def test_a_zombie_writes_nothing(place: Place, write: Write, state: str) -> None:
    job = await place.enqueue()
    zombie = await place.claim(job)
    await place.expire(job)
    await place.sweep()
    if state != "queued again":
        heir = await place.claim(job)
        if state == "ended":
            await _finish(place, heir)
    before, count = await place.row(job), await _count(place)
    with pytest.raises(LeaseLost):
        await write(place, zombie)
    after = await place.row(job)
    assert _columns(after) == _columns(before)
    assert await _count(place) == count


async def test_what_a_holder_writes_is_there(place: Place) -> None:
    """The other half of the test above: the same writes of the job's holder do happen."""
    job = await place.enqueue()
    claim = await place.claim(job)
    await _renew(place, claim)
    await _report(place, claim)
    await _write(place, claim)
    await _finish(place, claim)
    row = await place.row(job)
    assert (row.state, row.message, row.progress_pct, row.result) == (
        JobState.SUCCESS, "from the dead", 100.0, {"from": "the dead"},
    )  # fmt: skip
    assert await _count(place) == 2


async def test_a_takeover_waits_for_a_write_that_has_begun(place: Place) -> None:
    """The row is locked while its holder writes: a lease that runs out in the middle does not split the write."""
    job = await place.enqueue()
    claim = await place.claim(job, lease_seconds=0.05)
    async with JobRun(place.db, place.events, claim).writing() as session:
        session.add(Job(user_id=place.user_id, kind="test.work", queue="default", max_attempts=1))
        await session.flush()
        await asyncio.sleep(0.1)
        await place.sweep()
        assert (await place.row(job)).state == JobState.RUNNING
    await place.sweep()
    assert (await place.row(job)).state == JobState.QUEUED


async def test_a_queued_job_is_cancelled_at_once_and_its_end_is_told(place: Place) -> None:
    job = await place.enqueue()
    assert (await place.cancel(job)).state == JobState.CANCELLED
    assert [event.name for event in await place.events.read(job.public_id)] == ["complete"]
    assert [(job.id, JobState.CANCELLED)] == ENDINGS
    async with place.db.transaction() as session:
        assert await queue.claim(session, job.id, worker="w", lease_seconds=60) is None


async def test_a_running_job_is_asked_to_stop(place: Place) -> None:
    job = await place.enqueue()
    claim = await place.claim(job)
    assert (await place.cancel(job)).state == JobState.RUNNING
    asked_at = (await place.row(job)).cancel_requested_at
    assert (await place.cancel(job)).cancel_requested_at == asked_at
    assert await _renew(place, claim) is True


async def test_a_second_cancel_is_no_error_but_one_after_another_end_is(place: Place) -> None:
    job = await place.enqueue()
    await place.cancel(job)
    assert (await place.cancel(job)).state == JobState.CANCELLED
    done = await place.enqueue()
    await _finish(place, await place.claim(done))
    with pytest.raises(JobAlreadyEnded):
        await place.cancel(done)
    assert [(job.id, JobState.CANCELLED), (done.id, JobState.SUCCESS)] == ENDINGS


async def test_cancel_and_claim_at_once_agree(place: Place) -> None:
    """Either the job ends unclaimed, or its worker finds the request at its next heartbeat."""
    for _ in range(40):
        job = await place.enqueue()

        async def claim(job_id: int = job.id) -> Claim | None:
            async with place.db.transaction() as session:
                return await queue.claim(session, job_id, worker="w", lease_seconds=60)

        cancelled, claimed = await asyncio.gather(place.cancel(job), claim())
        if claimed is None:
            assert cancelled.state == JobState.CANCELLED
        else:
            assert cancelled.state == JobState.RUNNING
            assert await _renew(place, claimed) is True


async def test_cancel_put_back_and_sweep_at_once_leave_no_job_in_limbo(place: Place) -> None:
    """Every order of the three ends in cancelled: none leaves a queued job that nobody may claim."""
    jobs = [await place.enqueue() for _ in range(30)]
    for job in jobs:
        claim = await place.claim(job)
        await place.expire(job)

        async def put_back(held: Claim = claim) -> None:
            with contextlib.suppress(LeaseLost):
                await _put_back(place, held)

        await asyncio.gather(place.cancel(job), put_back(), place.sweep())
    await place.sweep()
    assert {(await place.row(job)).state for job in jobs} == {JobState.CANCELLED}
    assert sorted(ENDINGS) == [(job.id, JobState.CANCELLED) for job in jobs]


async def test_one_caller_gets_a_tick(place: Place) -> None:
    async def claim() -> bool:
        async with place.db.transaction() as session:
            return await service.claim_tick(session, "some.task", 86_400 * 365)

    assert sum(await asyncio.gather(*[claim() for _ in range(30)])) == 1


async def test_old_ticks_are_removed(place: Place) -> None:
    period = 0.001
    for _ in range(150):
        async with place.db.transaction() as session:
            await service.claim_tick(session, "some.task", period)
        await asyncio.sleep(0.002)
    async with place.db.transaction() as session:
        kept = await session.scalar(select(func.count()).select_from(service.Tick))
    assert kept is not None
    assert 0 < kept <= 101


async def test_at_a_start_of_the_whole_stack_every_job_is_taken_up_again(place: Place) -> None:
    running, queued = await place.enqueue(), await place.enqueue()
    await place.claim(running)
    await place.redis.flushdb()
    async with place.db.transaction() as session:
        await service.expire_leases(session)
    await asyncio.sleep(0.01)
    assert await place.sweep() == 2
    assert (await place.row(running)).state == JobState.QUEUED
    assert await place.messages() == 2
    dispatched_at = (await place.row(queued)).dispatched_at
    assert dispatched_at is not None
    assert (datetime.now(UTC) - dispatched_at).total_seconds() < 60


async def _count(place: Place) -> int:
    async with place.db.transaction() as session:
        return await session.scalar(select(func.count()).select_from(Job)) or 0


def _columns(job: Job) -> dict[str, object]:
    return {column.name: getattr(job, column.name) for column in Job.__table__.columns}
