"""The queue that tenants share: nobody starves, weights and limits count, and everybody sees where they stand."""

import asyncio
import secrets
from random import Random

import pytest
from sqlalchemy import text

from backend.jobs import kinds, queue, turns
from backend.jobs.kinds import JobKind
from backend.jobs.models import Job
from backend.jobs.states import JobState
from backend.jobs.turns import Waiting
from backend.users.models import User
from tests.jobs.conftest import Place

ON_GPU = kinds.register(JobKind("test.on_gpu", "gpu"))


async def new_user(place: Place) -> int:
    async with place.db.transaction() as session:
        user = User(email=f"{secrets.token_hex(8)}@example.com", password_hash="!", name="Tenant")
        session.add(user)
        await session.flush()
        return user.id


async def wait_in_line(place: Place, user: int, count: int, **fields: int) -> list[Job]:
    async with place.db.transaction() as session:
        return [
            await queue.enqueue(session, place.broker, ON_GPU, user_id=user, project_id=None, **fields)
            for _ in range(count)
        ]


async def take(place: Place, seconds: float) -> int | None:
    """One worker's turn: the job that is next is run for so long; returns its user."""
    async with place.db.transaction() as session:
        found = await turns.find_next(session, "gpu")
    if found is None:
        return None
    async with place.db.transaction() as session:
        claim = await queue.claim(session, found.id, worker="w", lease_seconds=60)
        assert claim is not None
    async with place.db.transaction() as session:
        await queue.finish(session, claim, JobState.SUCCESS)
        began = text("UPDATE jobs SET started_at = finished_at - make_interval(secs => :seconds) WHERE id = :id")
        await session.execute(began, {"seconds": seconds, "id": claim.id})
    return claim.user_id


async def test_twenty_jobs_of_one_tenant_do_not_starve_another(place: Place) -> None:
    many, one = place.user_id, await new_user(place)
    await wait_in_line(place, many, 20)
    await wait_in_line(place, one, 1)
    assert [await take(place, 60), await take(place, 60)] == [many, one]
    assert [await take(place, 60) for _ in range(19)] == [many] * 19
    assert await take(place, 60) is None


async def test_tenants_share_time_and_not_the_number_of_jobs(place: Place) -> None:
    long, short = place.user_id, await new_user(place)
    await wait_in_line(place, long, 10)
    await wait_in_line(place, short, 30)
    order = [await take(place, 300 if user == "first" else 100) for user in ("first", *["next"] * 3)]
    assert order == [long, short, short, short]


async def test_a_plan_with_twice_the_weight_has_twice_the_time(place: Place) -> None:
    plain, double = place.user_id, await new_user(place)
    await wait_in_line(place, plain, 20)
    await wait_in_line(place, double, 20, weight=2)
    order = [await take(place, 60) for _ in range(18)]
    assert order.count(double) == 12


async def test_use_of_long_ago_is_forgotten(place: Place) -> None:
    old, new = place.user_id, await new_user(place)
    await wait_in_line(place, old, 1)
    await take(place, 600)
    async with place.db.transaction() as session:
        await session.execute(
            text(
                "UPDATE jobs SET started_at = started_at - interval '2 hours', "
                "finished_at = finished_at - interval '2 hours'"
            )
        )
    await wait_in_line(place, old, 1)
    await wait_in_line(place, new, 1)
    assert await take(place, 1) == old


async def test_a_limit_on_running_jobs_holds_against_simultaneous_claims(place: Place) -> None:
    limited, other = place.user_id, await new_user(place)
    jobs = await wait_in_line(place, limited, 12, max_concurrent=2)
    await wait_in_line(place, other, 1)

    async def claim(job: Job) -> bool:
        async with place.db.transaction() as session:
            return await queue.claim(session, job.id, worker="w", lease_seconds=60) is not None

    assert sum(await asyncio.gather(*[claim(job) for job in jobs])) == 2
    async with place.db.transaction() as session:
        found = await turns.find_next(session, "gpu")
    assert found is not None
    assert (await take(place, 1)) == other
    assert await take(place, 1) is None, "the limit is reached, and nobody else waits"


async def test_everybody_sees_the_place_and_a_forecast_of_the_start(place: Place) -> None:
    first, second = place.user_id, await new_user(place)
    await wait_in_line(place, first, 1)
    await take(place, 100)  # such jobs take 100 seconds
    waiting = await wait_in_line(place, first, 3)
    late = (await wait_in_line(place, second, 1))[0]
    async with place.db.transaction() as session:
        places = await turns.places(session, "gpu")
    assert (places[late.id].position, places[late.id].starts_in_seconds) == (1, 0)
    assert [places[job.id].position for job in waiting] == [2, 3, 4]
    assert [places[job.id].starts_in_seconds for job in waiting] == pytest.approx([100, 200, 300], abs=2)


async def test_without_experience_there_is_a_place_but_no_forecast(place: Place) -> None:
    job = (await wait_in_line(place, place.user_id, 1))[0]
    async with place.db.transaction() as session:
        found = await turns.place_of(session, job)
        assert found is not None
        assert (found.position, found.starts_in_seconds) == (1, None)
        on_other_queue = await place.enqueue()
        assert await turns.place_of(session, on_other_queue) is None


def test_a_forecast_takes_each_job_once_and_never_starts_it_before_a_worker_is_free() -> None:
    random = Random(7)
    for _ in range(200):
        waiting = [
            Waiting(number, random.randrange(4), random.choice([0.0, 10.0, 500.0]), random.choice([1, 3]), 50.0)
            for number in range(random.randrange(1, 30))
        ]
        free = [random.uniform(0, 100) for _ in range(random.randrange(1, 4))]
        order = turns.simulate(waiting, free)
        assert sorted(job for job, _ in order) == [job.id for job in waiting]
        starts = [seconds for _, seconds in order]
        assert starts == sorted(starts)
        assert starts[0] == min(free)
