"""Idempotency-Key over HTTP: one effect, one answer, whatever is sent how often and at once."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import func, select, text, update

from backend.api.auth import OwnerDep
from backend.api.idempotency import IdempotentRoute
from backend.api.session import SessionDep
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.kit.owner import Owner
from backend.main import create_app
from backend.projects import service as projects
from backend.projects.models import Project
from backend.users import idempotency
from backend.users.errors import IdempotencyKeyReused, RefreshTokenReused
from backend.users.idempotency import KeptAnswer
from backend.users.models import IdempotencyKey, User
from celery_app import beat
from tests.conftest import Tenant

TEXT = b"Zorblax pumps deliver nine litres in a minute. " * 40
TAKES_A_KEY = {
    "/projects",
    "/projects/{project_id}/chunks/generate",
    "/projects/{project_id}/dataset/preview",
    "/projects/{project_id}/dataset/generate",
    "/projects/{project_id}/train/start",
    "/projects/{project_id}/train/compare",
    "/projects/{project_id}/export",
}


def new_key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(16)}


@pytest.fixture
async def project(tenant: Tenant) -> str:
    made = await tenant.make_project()
    assert (await tenant.upload(made, "a.txt", TEXT)).status_code == 201
    return made


async def count(db: Database, tenant: Tenant, model: Any) -> int:
    async with db.transaction() as session:
        user_id = await session.scalar(select(User.id).where(User.email == tenant.email))
        return await session.scalar(select(func.count()).select_from(model).where(model.user_id == user_id)) or 0


async def test_the_same_request_is_done_once_and_answered_alike(tenant: Tenant, project: str, db: Database) -> None:
    key, path = new_key(), f"/projects/{project}/chunks/generate"
    body = {"chunk_size_tokens": 64, "chunk_overlap_tokens": 0}
    first = await tenant.client.post(path, json=body, headers=key)
    assert first.status_code == 202, first.text
    assert "idempotent-replayed" not in first.headers
    again = [await tenant.client.post(path, json=body, headers=key) for _ in range(2)]
    for answer in again:
        assert (answer.status_code, answer.content) == (first.status_code, first.content)
        assert answer.headers["idempotent-replayed"] == "true"
        assert answer.headers["content-type"] == first.headers["content-type"]
    assert await count(db, tenant, Job) == 1


async def test_a_new_project_comes_once(tenant: Tenant) -> None:
    key, body = new_key(), {"name": "Énergie 文", "config": {"max_seq_length": 512}}
    answers = [await tenant.client.post("/projects", json=body, headers=key) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert (await tenant.client.get("/projects")).json()["total"] == 1


async def test_another_request_with_the_key_is_refused(tenant: Tenant, project: str, db: Database) -> None:
    key, path = new_key(), f"/projects/{project}/chunks/generate"
    assert (await tenant.client.post(path, json={"chunk_size_tokens": 64}, headers=key)).status_code == 202
    others = [
        (path, {"chunk_size_tokens": 65}),
        (f"{path}?x=1", {"chunk_size_tokens": 64}),
        ("/projects", {"name": "P"}),
    ]
    for other, body in others:
        answer = await tenant.client.post(other, json=body, headers=key)
        assert (answer.status_code, answer.json()["error_code"]) == (422, "IDEMPOTENCY_KEY_REUSED"), other
    assert await count(db, tenant, Job) == 1
    assert (await tenant.client.get("/projects")).json()["total"] == 1


async def test_without_a_key_everything_is_done_again(tenant: Tenant) -> None:
    for _ in range(2):
        assert "idempotent-replayed" not in (await tenant.client.post("/projects", json={"name": "P"})).headers
    assert (await tenant.client.get("/projects")).json()["total"] == 2


async def test_at_once_one_does_the_work_and_the_others_repeat_its_answer(
    tenant: Tenant, project: str, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    key, path = new_key(), f"/projects/{project}/chunks/generate"
    answers = await asyncio.gather(*[tenant.client.post(path, headers=key) for _ in range(12)])
    assert [answer.status_code for answer in answers] == [202] * 12
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 11
    assert await count(db, tenant, Job) == 1
    assert capsys.readouterr().err == ""


async def test_two_keys_are_two_requests(tenant: Tenant) -> None:
    answers = await asyncio.gather(
        *[tenant.client.post("/projects", json={"name": "P"}, headers=new_key()) for _ in range(5)]
    )
    assert len({answer.json()["id"] for answer in answers}) == 5


async def test_a_failure_is_not_kept(tenant: Tenant, project: str, db: Database) -> None:
    key, path = new_key(), f"/projects/{project}/chunks/generate"
    refusals = [
        (path, {"chunk_size_tokens": 64, "chunk_overlap_tokens": 64}, 400),
        (path, {"chunk_size_tokens": "many"}, 422),
        (path.replace(project, secrets.token_hex(16)), {}, 404),
        (f"/projects/{project}/dataset/generate", {}, 400),
    ]
    for other, body, status in refusals:
        for _ in range(2):
            answer = await tenant.client.post(other, json=body, headers=key)
            assert (answer.status_code, "idempotent-replayed" in answer.headers) == (status, False), answer.text
    assert await count(db, tenant, IdempotencyKey) == 0
    # The request that was put right goes through with the same key; so does a conflict once it is over.
    done = await tenant.client.post(path, json={"chunk_size_tokens": 64, "chunk_overlap_tokens": 0}, headers=key)
    assert done.status_code == 202
    waiting = new_key()
    assert (await tenant.client.post(path, headers=waiting)).status_code == 409
    await tenant.client.post(f"/jobs/{done.json()['job_id']}/cancel")
    assert (await tenant.client.post(path, headers=waiting)).status_code == 202


async def test_a_key_is_its_users_own(make_tenant: Callable[[], Awaitable[Tenant]]) -> None:
    key, body = new_key(), {"name": "P"}
    one, other = await make_tenant(), await make_tenant()
    first = await one.client.post("/projects", json=body, headers=key)
    second = await other.client.post("/projects", json=body, headers=key)
    assert (second.status_code, "idempotent-replayed" in second.headers) == (201, False)
    assert first.json()["id"] != second.json()["id"]


async def test_an_answer_is_told_to_nobody_without_a_login(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    key, body = new_key(), {"name": "P"}
    assert (await tenant.client.post("/projects", json=body, headers=key)).status_code == 201
    assert (await anonymous.post("/projects", json=body, headers=key)).status_code == 401
    await tenant.client.post("/api/auth/logout")
    assert (await tenant.client.post("/projects", json=body, headers=key)).status_code == 401


@pytest.mark.parametrize("key", [b"", b"x" * 256, "clé".encode(), b"a\tb", b"a\x7fb"])
async def test_a_key_that_is_none_is_refused(tenant: Tenant, key: bytes) -> None:
    headers = [(b"Idempotency-Key", key)]
    answer = await tenant.client.post("/projects", json={"name": "P"}, headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "BAD_IDEMPOTENCY_KEY")
    assert (await tenant.client.get("/projects")).json()["total"] == 0


@pytest.mark.parametrize("key", ["x", "x" * 255, "a key: with {signs} & ~"])
async def test_any_printable_key_will_do(tenant: Tenant, key: str) -> None:
    for replayed in (False, True):
        answer = await tenant.client.post("/projects", json={"name": "P"}, headers={"Idempotency-Key": key})
        assert (answer.status_code, "idempotent-replayed" in answer.headers) == (201, replayed)


async def test_the_answer_and_the_work_are_committed_together(
    tenant: Tenant, project: str, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails after the work was done, but before the commit, leaves neither."""
    key, path = new_key(), f"/projects/{project}/chunks/generate"

    async def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(idempotency, "keep", fail)
        assert (await tenant.client.post(path, headers=key)).status_code == 500
    assert (await count(db, tenant, Job), await count(db, tenant, IdempotencyKey)) == (0, 0)
    assert (await tenant.client.post(path, headers=key)).status_code == 202
    assert (await count(db, tenant, Job), await count(db, tenant, IdempotencyKey)) == (1, 1)


async def owner_of(db: Database, tenant: Tenant) -> Owner:
    async with db.transaction() as session:
        user = (await session.scalars(select(User).where(User.email == tenant.email))).one()
    return Owner(id=user.id, public_id=user.public_id)


async def test_who_waited_for_a_failure_does_the_work(tenant: Tenant, db: Database) -> None:
    owner, key = await owner_of(db, tenant), secrets.token_hex(16)

    async def second() -> KeptAnswer | None:
        async with db.transaction() as session:
            return await idempotency.claim(session, owner, key, "a" * 64)

    async def first() -> None:
        async with db.transaction() as session:
            assert await idempotency.claim(session, owner, key, "a" * 64) is None
            waiting.append(asyncio.create_task(second()))
            await asyncio.sleep(0.3)
            assert not waiting[0].done(), "it waits for this transaction's end"
            raise RuntimeError("on purpose")

    waiting: list[asyncio.Task[KeptAnswer | None]] = []
    with pytest.raises(RuntimeError, match="on purpose"):
        await first()
    assert await asyncio.wait_for(waiting[0], 5) is None


async def test_answers_are_forgotten_after_a_day(tenant: Tenant, db: Database) -> None:
    keys = {hours: new_key() for hours in (23, 25)}
    for hours, key in keys.items():
        assert (await tenant.client.post("/projects", json={"name": "P"}, headers=key)).status_code == 201
        async with db.transaction() as session:
            await session.execute(
                update(IdempotencyKey)
                .where(IdempotencyKey.key == key["Idempotency-Key"])
                .values(created_at=text(f"clock_timestamp() - interval '{hours} hours'"))
            )
    assert await idempotency.forget_old(db) >= 1
    replayed = {}
    for hours, key in keys.items():
        answer = await tenant.client.post("/projects", json={"name": "P"}, headers=key)
        replayed[hours] = "idempotent-replayed" in answer.headers
    assert replayed == {23: True, 25: False}


def test_the_scheduler_asks_for_it_and_a_worker_knows_how(settings: Settings) -> None:
    from celery_app.app import app as celery

    celery.loader.import_default_modules()
    entry = beat.schedule(settings)["idempotency.sweep"]
    assert (entry["task"] in celery.tasks, entry["options"]["queue"]) == (True, "control")
    assert entry["schedule"] <= 3600


@pytest.fixture
async def odd(settings: Settings, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    """A client of routes that end as none of ours does yet."""
    router = APIRouter(route_class=IdempotentRoute)

    @router.post("/odd/keeps")
    async def fail_and_keep(owner: OwnerDep, session: SessionDep) -> None:
        await projects.create(session, owner, name="Kept", description=None, task_type="qa", config={})
        raise RefreshTokenReused()

    @router.post("/odd/refuses")
    async def refuse_by_answer(owner: OwnerDep, session: SessionDep) -> JSONResponse:
        await projects.create(session, owner, name="Kept", description=None, task_type="qa", config={})
        return JSONResponse({"detail": "no"}, status_code=418)

    app: FastAPI = create_app(settings)
    app.include_router(router)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        headers = {"Authorization": tenant.client.headers["Authorization"]}
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
            yield client


@pytest.mark.parametrize(("path", "status"), [("/odd/keeps", 401), ("/odd/refuses", 418)])
async def test_a_failure_that_is_committed_frees_its_key(
    odd: httpx.AsyncClient, tenant: Tenant, db: Database, path: str, status: int
) -> None:
    key = new_key()
    answers = [await odd.post(path, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [status] * 2
    assert all("idempotent-replayed" not in answer.headers for answer in answers)
    assert (await count(db, tenant, Project), await count(db, tenant, IdempotencyKey)) == (2, 0)


async def test_the_claim_refuses_another_request(tenant: Tenant, db: Database) -> None:
    owner, key = await owner_of(db, tenant), secrets.token_hex(16)
    async with db.transaction() as session:
        assert await idempotency.claim(session, owner, key, "a" * 64) is None
        await idempotency.keep(session, owner, key, KeptAnswer(202, "{}"))
    async with db.transaction() as session:
        assert await idempotency.claim(session, owner, key, "a" * 64) == KeptAnswer(202, "{}")
    with pytest.raises(IdempotencyKeyReused):
        async with db.transaction() as session:
            await idempotency.claim(session, owner, key, "b" * 64)


def test_what_starts_work_documents_the_key(app: FastAPI) -> None:
    taking = set()
    for path, methods in app.openapi()["paths"].items():
        for method, spec in methods.items():
            for parameter in spec.get("parameters", []):
                if parameter["name"] == "Idempotency-Key":
                    assert (method, parameter["in"], parameter["required"]) == ("post", "header", False)
                    assert {"400", "422"} <= set(spec["responses"]), path
                    taking.add(path)
    assert taking >= TAKES_A_KEY
