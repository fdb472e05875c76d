"""Characters around work: held before it starts, settled when it is done, given back when it is not."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from backend.billing import auditing, charging, ledger, queries
from backend.billing.errors import InsufficientCharacters
from backend.billing.models import Hold, LedgerEntry, Order
from backend.billing.pricing import Means
from backend.contents.models import Content
from backend.datasets.models import Dataset
from backend.jobs import queue
from backend.jobs.models import Job, Tick
from backend.jobs.states import JobState
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.users.models import User
from backend.users.service import LOCAL_EMAIL, seed_local_owner
from tests.billing.dying import POINTS
from tests.conftest import Tenant
from tests.datasets.lamps import make_project, manual, start
from tests.llm_server import LLMServer

RunJobs = Callable[[str], Awaitable[dict[str, Any]]]
QUOTA = 10_000


@pytest.fixture
def priced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The service's own figures, in place of those that leave room for every test."""
    monkeypatch.setattr(settings, "free_characters", QUOTA)
    return settings


@pytest.fixture
async def server(llm_server: LLMServer) -> AsyncIterator[LLMServer]:
    llm_server.requests.clear()
    yield llm_server
    llm_server.mode, llm_server.delay_seconds = "good", 0.0


async def number_of(tenant: Tenant) -> int:
    return int((await tenant.client.get("/api/users/me")).json()["id"])


async def balance(db: Database, user: int) -> ledger.Balance:
    async with db.transaction() as session:
        return await ledger.balance(session, user)


async def job_row(db: Database, public_id: str) -> Job:
    async with db.transaction() as session:
        return (await session.scalars(select(Job).where(Job.public_id == UUID(public_id)))).one()


async def give(db: Database, user: int, characters: int) -> None:
    async with db.transaction() as session:
        await ledger.post(
            session, user_id=user, kind="purchase", characters=characters, reference=f"test:{user}", params={}
        )


async def set_contents(db: Database, project: str, **values: Any) -> list[int]:
    """Changes all contents of a project; returns their numbers."""
    async with db.transaction() as session:
        number = (await session.execute(select_project(project))).scalar_one()
        changed = update(Content).where(Content.project_id == number).values(**values).returning(Content.id)
        return list((await session.scalars(changed)).all())


def select_project(public_id: str) -> Any:
    from backend.projects.models import Project

    return select(Project.id).where(Project.public_id == UUID(public_id))


async def nothing_is_wrong(db: Database, user: int) -> None:
    found = await auditing.verify(db)
    assert user not in found.users


async def test_fifty_claims_of_the_free_quota_are_one_grant(db: Database, tenant: Tenant, priced: Settings) -> None:
    user = await number_of(tenant)

    async def claim() -> bool:
        async with db.transaction() as session:
            return await charging.claim_free(session, priced, user)

    assert sum(await asyncio.gather(*[claim() for _ in range(50)])) == 1
    assert await balance(db, user) == ledger.Balance(posted=QUOTA, granted=QUOTA)
    profile = (await tenant.client.get("/api/users/me")).json()
    assert profile["has_received_free_credits"] is True
    async with db.transaction() as session:
        assert await charging.means(session, priced, user) == Means(QUOTA, 0, 20_000)


async def test_fifty_jobs_at_once_share_one_free_quota(db: Database, tenant: Tenant, priced: Settings) -> None:
    """Each wants 1,000: ten of the quota, and twenty that are complimentary within the month's cap."""
    user = await number_of(tenant)
    missing: list[int] = []

    async def reserve(number: int) -> bool:
        try:
            async with db.transaction() as session:
                held = await charging.reserve(
                    session,
                    priced,
                    user_id=user,
                    characters=1_000,
                    reference=f"{user}:{number}",
                    purpose=charging.GENERATION,
                )
                return held is not None
        except InsufficientCharacters as error:
            missing.append(error.context["quote"]["to_pay"])
            return False

    assert sum(await asyncio.gather(*[reserve(number) for number in range(50)])) == 30
    assert missing == [1_000] * 20
    found = await balance(db, user)
    assert (found.granted, found.complimentary, found.held, found.available) == (QUOTA, 20_000, 30_000, 0)
    # What goes back is spent before more is given.
    async with db.transaction() as session:
        holds = await queries.live_holds_of_user(session, user)
        for hold_id in holds[:5]:
            await ledger.release(session, hold_id)
    assert sum(await asyncio.gather(*[reserve(number) for number in range(50, 70)])) == 5
    assert (await balance(db, user)).complimentary == 20_000
    await nothing_is_wrong(db, user)


async def test_the_same_reference_is_the_same_hold(db: Database, tenant: Tenant, priced: Settings) -> None:
    user = await number_of(tenant)
    ids = []
    for _ in range(3):
        async with db.transaction() as session:
            held = await charging.reserve(
                session, priced, user_id=user, characters=7_000, reference=f"{user}", purpose=charging.GENERATION
            )
            assert held is not None
            ids.append(held.id)
    assert len(set(ids)) == 1
    assert (await balance(db, user)).held == 7_000


async def test_last_months_gifts_do_not_count(db: Database, tenant: Tenant) -> None:
    user = await number_of(tenant)
    async with db.transaction() as session:
        for number, params in enumerate(({}, {"unbilled": True})):
            await ledger.post(
                session, user_id=user, kind="complimentary", characters=500, reference=f"{user}:{number}", params=params
            )
        written = await session.scalar(select(LedgerEntry.created_at).where(LedgerEntry.user_id == user).limit(1))
        assert written is not None
        assert await queries.given_this_month(session, user, written) == 500
        following = written.replace(year=written.year + 1)
        assert await queries.given_this_month(session, user, following) == 0


async def test_an_order_has_one_hold(db: Database, tenant: Tenant, priced: Settings) -> None:
    user = await number_of(tenant)
    async with db.transaction() as session:
        price = await charging.quote(session, priced, user, 9_000)
        order = Order(user_id=user, kind="fine_tuning_job", state="paid", characters=9_000, currency="eur")
        session.add(order)
        await session.flush()
        first = await charging.reserve_for_order(session, priced, order, price)
        second = await charging.reserve_for_order(session, priced, order, price)
        assert first is not None
        assert second is not None
        assert first.id == second.id == order.hold_id
    # Its order decides: neither the end of a job nor the sweeper does, as long as the order is live.
    async with db.transaction() as session:
        assert not await charging.release_of_job(session, first.id)
    await sweep(db)
    assert (await balance(db, user)).held == 9_000
    async with db.transaction() as session:
        await session.execute(update(Order).where(Order.id == order.id).values(state="failed"))
    await sweep(db)
    assert (await balance(db, user)).held == 0


async def sweep(db: Database) -> int:
    """One tick, whenever the last one was."""
    async with db.transaction() as session:
        await session.execute(Tick.__table__.delete().where(Tick.task == auditing.SWEEP_TASK))
    return await auditing.release_abandoned(db)


async def test_a_generation_holds_and_settles(
    db: Database, tenant: Tenant, run_jobs: RunJobs, server: LLMServer, priced: Settings
) -> None:
    user = await number_of(tenant)
    project = await make_project(tenant, run_jobs)
    size = len(manual().decode())
    [content] = await set_contents(db, project, character_count=size)
    job = await start(tenant, project, num_examples_target=10)
    assert (await balance(db, user)).held == size
    done = await run_jobs(job)
    assert done["state"] == "success", done["error_message"]
    assert done["result"]["characters_processed"] == size
    found = await balance(db, user)
    assert (found.held, found.used, found.posted) == (0, size, QUOTA - size)
    # A preview and an import cost nothing.
    preview = (await tenant.client.post(f"/projects/{project}/dataset/preview", json={"num_examples": 2})).json()
    assert (await run_jobs(preview["job_id"]))["state"] == "success"
    assert await balance(db, user) == found
    # Only what came since is read again; here nothing did.
    again = await start(tenant, project, only_changed=True)
    assert (await balance(db, user)).held == 0
    assert (await run_jobs(again))["state"] == "success"
    assert await balance(db, user) == found
    profile = (await tenant.client.get("/api/users/me")).json()
    assert profile["free_characters_remaining"] == QUOTA - size
    assert profile["total_characters_used"] == size
    async with db.transaction() as session:
        entry = (
            await session.scalars(select(LedgerEntry).where(LedgerEntry.user_id == user, LedgerEntry.kind == "usage"))
        ).one()
        dataset = await session.get_one(Dataset, done["params"]["dataset_id"])
    assert entry.params["dataset"] == str(dataset.public_id)
    assert content > 0
    await nothing_is_wrong(db, user)


async def test_changed_documents_alone_are_charged(
    db: Database, tenant: Tenant, run_jobs: RunJobs, server: LLMServer, priced: Settings
) -> None:
    from tests.datasets.lamps import rechunk

    user = await number_of(tenant)
    project = await make_project(tenant, run_jobs)
    assert (await run_jobs(await start(tenant, project, num_examples_target=10)))["state"] == "success"
    before = (await balance(db, user)).used
    assert (await tenant.upload(project, "more.md", manual(3, start=40))).status_code == 201
    await rechunk(tenant, project, run_jobs)
    job = await start(tenant, project, only_changed=True)
    held = (await balance(db, user)).held
    assert 0 < held < before
    done = await run_jobs(job)
    assert done["state"] == "success", done["error_message"]
    found = await balance(db, user)
    assert (found.held, found.used) == (0, before + done["result"]["characters_processed"])
    assert 0 < done["result"]["characters_processed"] <= held


async def test_too_little_is_402_before_anything_starts(
    db: Database, tenant: Tenant, run_jobs: RunJobs, server: LLMServer, priced: Settings
) -> None:
    user = await number_of(tenant)
    project = await make_project(tenant, run_jobs)
    [content] = await set_contents(db, project, character_count=40_000)
    async with db.transaction() as session:
        number = (await session.execute(select_project(project))).scalar_one()
        jobs = await session.scalar(select(func.count()).select_from(Job).where(Job.project_id == number))
    body = {"project_id": number, "name": "Big", "model": "m", "content_ids": [content]}
    for answer in (
        await tenant.client.post(f"/projects/{project}/dataset/generate", json={}),
        await tenant.client.post("/api/datasets", json=body),
    ):
        refused = answer.json()
        assert (answer.status_code, refused["error_code"]) == (402, "INSUFFICIENT_CHARACTERS")
        assert (refused["context"]["needed"], refused["context"]["available"]) == (40_000, QUOTA)
        quote = refused["context"]["quote"]
        assert (quote["from_free"], quote["to_pay"], quote["amount_cents"]) == (QUOTA, 30_000, 1_095)
        assert [line["kind"] for line in quote["lines"]] == ["free_quota", "purchase"]
    french = await tenant.client.post("/api/datasets", json=body, headers={"Accept-Language": "fr"})
    assert french.json()["detail"].startswith("Il faut 40000 caractères et 10000 sont disponibles.")
    async with db.transaction() as session:
        after = await session.scalar(select(func.count()).select_from(Job).where(Job.project_id == number))
        datasets = await session.scalar(select(func.count()).select_from(Dataset).where(Dataset.project_id == number))
    assert (after, datasets) == (jobs, 0)
    assert await balance(db, user) == ledger.Balance()
    assert not server.requests
    # With the rest bought, it starts.
    await give(db, user, 30_000)
    assert (await tenant.client.post("/api/datasets", json=body)).status_code == 201
    assert (await balance(db, user)).available == 0


@pytest.mark.parametrize("how", ["failure", "cancel", "cancel while it runs"])
async def test_what_fails_or_is_cancelled_costs_nothing(
    db: Database, tenant: Tenant, run_jobs: RunJobs, server: LLMServer, priced: Settings, how: str
) -> None:
    user = await number_of(tenant)
    job = await start(tenant, await make_project(tenant, run_jobs), num_examples_target=10)
    assert (await balance(db, user)).held > 0
    if how == "failure":
        server.mode = "garbage"
        assert (await run_jobs(job))["state"] == "failed"
    elif how == "cancel":
        assert (await tenant.client.post(f"/jobs/{job}/cancel")).status_code == 200
    else:
        server.delay_seconds = 0.5
        running = asyncio.ensure_future(run_jobs(job))
        while (await job_row(db, job)).state == JobState.QUEUED:
            await asyncio.sleep(0.05)
        assert (await tenant.client.post(f"/jobs/{job}/cancel")).status_code == 200
        assert (await running)["state"] == "cancelled"
    assert await balance(db, user) == ledger.Balance(posted=QUOTA, granted=QUOTA)
    await nothing_is_wrong(db, user)


async def test_contents_without_text_are_held_when_they_have_it(
    db: Database, tenant: Tenant, run_jobs: RunJobs, server: LLMServer, priced: Settings
) -> None:
    user = await number_of(tenant)
    project = await tenant.make_project()
    for name in ("lamps.md", "later.md"):
        assert (await tenant.upload(project, name, manual(8, start=20 * (name == "later.md")))).status_code == 201
    contents = await set_contents(db, project, character_count=1_000)
    async with db.transaction() as session:
        number = (await session.execute(select_project(project))).scalar_one()
        later = await session.get_one(Content, max(contents))
        later.status, later.character_count = "pending", 0
    body = {"project_id": number, "name": "Both", "model": "m", "content_ids": contents}
    made = (await tenant.client.post("/api/datasets", json=body)).json()
    assert (await balance(db, user)).held == 1_000
    assert (await run_jobs(made["task_id"]))["state"] == "queued"

    async def arrives(characters: int) -> None:
        async with db.transaction() as session:
            row = await session.get_one(Content, max(contents))
            row.status, row.character_count = "ready", characters
            job = (await session.scalars(select(Job).where(Job.public_id == made["task_id"]))).one()
            job.available_at = None

    await arrives(4_000)
    prepared = await run_jobs(made["task_id"])
    assert prepared["state"] == "success", prepared["error_message"]
    assert (await balance(db, user)).held == 5_000
    async with db.transaction() as session:
        following = (await session.scalars(select(Job).where(Job.project_id == number, Job.state == "queued"))).one()
        held = (await session.scalars(select(Hold).where(Hold.user_id == user))).one()
    # The hold ends with the job that came after the one that it was made for.
    assert held.job_id == following.id
    await sweep(db)
    assert (await run_jobs(str(following.public_id)))["state"] == "success"
    assert (await balance(db, user)).used == 5_000

    # Another dataset of contents that turn out too long fails before a model is asked.
    async with db.transaction() as session:
        row = await session.get_one(Content, max(contents))
        row.status, row.character_count = "pending", 0
    made = (await tenant.client.post("/api/datasets", json={**body, "content_ids": [max(contents)]})).json()
    assert (await balance(db, user)).held == 0
    asked = len(server.requests)
    await arrives(90_000)
    ended = await run_jobs(made["task_id"])
    assert (ended["state"], ended["error_code"]) == ("failed", "INSUFFICIENT_CHARACTERS")
    shown = (await tenant.client.get(f"/api/datasets/{made['id']}")).json()
    assert (shown["status"], shown["error_code"]) == ("error", "INSUFFICIENT_CHARACTERS")
    assert len(server.requests) == asked
    found = await balance(db, user)
    assert (found.held, found.used) == (0, 5_000)
    await nothing_is_wrong(db, user)


@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("what", ["project", "account"])
async def test_deleting_gives_back_what_was_held(
    db: Database, tenant: Tenant, run_jobs: RunJobs, server: LLMServer, priced: Settings, what: str, is_running: bool
) -> None:
    user = await number_of(tenant)
    project = await make_project(tenant, run_jobs)
    job = await start(tenant, project, num_examples_target=10)
    running = None
    if is_running:
        server.delay_seconds = 0.5
        running = asyncio.create_task(run_and_lose(run_jobs, job))
        while (await job_row(db, job)).state == JobState.QUEUED:
            await asyncio.sleep(0.05)
    assert (await balance(db, user)).held > 0
    if what == "project":
        answer = await tenant.client.delete(f"/projects/{project}")
    else:
        answer = await tenant.client.request("DELETE", "/api/users/me", json={"password": tenant.password})
    assert answer.status_code == 204, answer.text
    assert await balance(db, user) == ledger.Balance(posted=QUOTA, granted=QUOTA)
    if running is not None:
        await running
        assert await balance(db, user) == ledger.Balance(posted=QUOTA, granted=QUOTA)
    await nothing_is_wrong(db, user)


async def run_and_lose(run_jobs: RunJobs, job: str) -> None:
    """Runs a job whose row is deleted meanwhile."""
    with pytest.raises(Exception, match="No row was found"):
        await run_jobs(job)


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_point_charges_once(
    db: Database, tenant: Tenant, run_jobs: RunJobs, server: LLMServer, priced: Settings, point: str
) -> None:
    """kill -9 of the worker between each pair of steps, then another worker: one usage, and nothing held."""
    user = await number_of(tenant)
    project = await make_project(tenant, run_jobs, manual(4))
    public_id = await start(tenant, project, num_examples_target=4)
    size = (await balance(db, user)).held
    job = await job_row(db, public_id)
    worker = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.billing.dying", str(job.id), point)
    assert await asyncio.wait_for(worker.wait(), 150) == -signal.SIGKILL
    if (await job_row(db, public_id)).state == JobState.RUNNING:
        assert (await balance(db, user)).held == size
        await sweep(db)
        assert (await balance(db, user)).held == size
        async with db.transaction() as session:
            await session.execute(
                update(Job)
                .where(Job.id == job.id)
                .values(lease_until=func.clock_timestamp() - func.make_interval(0, 0, 0, 1))
            )
        async with db.transaction() as session:
            await queue.requeue_expired(session)
            await session.execute(update(Job).where(Job.id == job.id).values(available_at=None))
        done = await run_jobs(public_id)
        assert done["state"] == "success", done["error_message"]
    assert await balance(db, user) == ledger.Balance(posted=QUOTA - size, granted=QUOTA, used=size)
    await nothing_is_wrong(db, user)


async def test_what_nobody_ends_is_swept(
    db: Database, tenant: Tenant, run_jobs: RunJobs, server: LLMServer, priced: Settings
) -> None:
    user = await number_of(tenant)
    job = await job_row(db, await start(tenant, await make_project(tenant, run_jobs), num_examples_target=10))
    async with db.transaction() as session:
        disputed = await ledger.hold(
            session, user_id=user, characters=5, reference=f"dispute:{user}", purpose=charging.DISPUTE
        )
    held = (await balance(db, user)).held
    await sweep(db)
    assert (await balance(db, user)).held == held
    # As if its ending had never run.
    async with db.transaction() as session:
        await session.execute(update(Job).where(Job.id == job.id).values(state="failed"))
    assert await sweep(db) >= 1
    assert (await balance(db, user)).held == disputed.characters == 5
    # Two schedulers that send the same tick are one.
    assert await auditing.release_abandoned(db) == 0


async def test_the_owner_of_a_local_service_is_only_recorded(db: Database, priced: Settings) -> None:
    async with db.transaction() as session:
        owner = await seed_local_owner(session)
        assert await session.scalar(select(User.email).where(User.id == owner.id)) == LOCAL_EMAIL
        before = await ledger.balance(session, owner.id)
        for _ in range(2):
            held = await charging.reserve(
                session,
                priced,
                user_id=owner.id,
                characters=10**9,
                reference=f"local:{owner.public_id}",
                purpose=charging.GENERATION,
            )
            assert held is None
            await charging.charge(
                session,
                user_id=owner.id,
                hold_id=None,
                characters=10**9,
                reference=f"local:{owner.public_id}",
                params={},
            )
        found = await ledger.balance(session, owner.id)
        assert (await charging.quote(session, priced, owner.id, 10**9)).is_free
    assert (found.posted, found.held) == (before.posted, 0)
    assert found.used - before.used in (0, 10**9)
    assert found.used >= 10**9
