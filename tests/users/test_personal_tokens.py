"""Personal access tokens: shown once, good on both faces, and dead as soon as they are revoked or too old."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import event, select, text, update

from backend.api.rate_limit import caller_of
from backend.kit.db import Database
from backend.users.models import PersonalAccessToken, User
from backend.users.personal_tokens import MAXIMUM
from tests.conftest import Tenant

URL = "/api/users/me/tokens"


async def make(tenant: Tenant, **fields: Any) -> dict[str, Any]:
    answer = await tenant.client.post(URL, json={"name": "Nightly run", **fields})
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


@asynccontextmanager
async def machine(app: Any, token: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
        yield client


async def row_of(db: Database, token_id: int) -> PersonalAccessToken:
    async with db.transaction() as session:
        return (await session.scalars(select(PersonalAccessToken).where(PersonalAccessToken.id == token_id))).one()


async def test_a_token_is_shown_once_and_works_on_both_faces(app: Any, tenant: Tenant, db: Database) -> None:
    made = await make(tenant)
    assert re.fullmatch(r"ftf_[A-Za-z0-9]{40}", made["token"])
    assert made["token"].startswith(made["prefix"])
    listed = await tenant.client.get(URL)
    assert [row["id"] for row in listed.json()] == [made["id"]]
    assert made["token"] not in listed.text
    row = await row_of(db, made["id"])
    assert made["token"] not in str([getattr(row, column.name) for column in row.__table__.columns])
    async with machine(app, made["token"]) as client:
        assert (await client.get("/api/users/me")).json()["email"] == tenant.email
        project = await client.post("/projects", json={"name": "By a machine"}, headers={"Idempotency-Key": "k1"})
        assert project.status_code == 201
        again = await client.post("/projects", json={"name": "By a machine"}, headers={"Idempotency-Key": "k1"})
        assert again.json()["id"] == project.json()["id"]
        assert len((await client.get("/api/projects")).json()) == 1
    assert (await tenant.client.get(f"/projects/{project.json()['id']}")).status_code == 200


async def test_a_revoked_token_dies_at_once(app: Any, tenant: Tenant) -> None:
    made = await make(tenant)
    async with machine(app, made["token"]) as client:
        assert (await client.get("/projects")).status_code == 200
        assert (await tenant.client.delete(f"{URL}/{made['id']}")).status_code == 204
        refused = await client.get("/projects")
        assert (refused.status_code, refused.json()["error_code"]) == (401, "BAD_TOKEN")
    assert (await tenant.client.delete(f"{URL}/{made['id']}")).json()["error_code"] == "TOKEN_NOT_FOUND"
    assert (await tenant.client.get(URL)).json() == []


async def test_an_expired_token_is_refused(app: Any, tenant: Tenant, db: Database) -> None:
    made = await make(tenant, expires_in_days=30)
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29.9) < left <= timedelta(days=30)
    async with machine(app, made["token"]) as client:
        assert (await client.get("/projects")).status_code == 200
        async with db.transaction() as session:
            past = {"expires_at": datetime.now(UTC) - timedelta(seconds=1)}
            await session.execute(update(PersonalAccessToken).where(PersonalAccessToken.id == made["id"]).values(past))
        assert (await client.get("/projects")).status_code == 401
    assert (await tenant.client.get(URL)).json() == []


async def test_a_closed_accounts_token_is_refused(app: Any, tenant: Tenant, db: Database) -> None:
    made = await make(tenant)
    async with db.transaction() as session:
        await session.execute(update(User).where(User.email == tenant.email).values(is_active=False))
    async with machine(app, made["token"]) as client:
        assert (await client.get("/projects")).status_code == 401


@pytest.mark.parametrize("change", [str.lower, str.swapcase, lambda t: t[:-1], lambda t: t + "a", lambda t: "ftf_"])
async def test_a_token_that_is_nearly_right_is_refused(app: Any, tenant: Tenant, change: Callable[[str], str]) -> None:
    made = await make(tenant)
    async with machine(app, change(made["token"])) as client:
        answer = await client.get("/projects")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", URL, {"name": "Child"}),
        ("DELETE", f"{URL}/1", None),
        ("GET", "/api/users/me/sessions", None),
        ("DELETE", "/api/users/me/sessions", None),
        ("DELETE", "/api/users/me/sessions/1", None),
        ("POST", "/api/auth/logout", None),
        ("POST", "/api/users/me/change-password", {"current_password": "a long password", "new_password": "x" * 12}),
        ("DELETE", "/api/users/me", {"password": "a long password"}),
    ],
)
async def test_a_machine_cannot_change_who_gets_in(app: Any, tenant: Tenant, method: str, path: str, body: Any) -> None:
    made = await make(tenant)
    async with machine(app, made["token"]) as client:
        refused = await client.request(method, path, json=body)
        assert (refused.status_code, refused.json()["error_code"]) == (403, "LOGIN_REQUIRED")
        assert (await client.get("/api/users/me")).status_code == 200


async def test_the_use_is_noted_at_most_once_a_minute(app: Any, tenant: Tenant, db: Database) -> None:
    made = await make(tenant)
    assert made["last_used_at"] is None
    async with machine(app, made["token"]) as client:
        await asyncio.gather(*[client.get("/projects") for _ in range(10)])
        await app.state.services.background.idle()
        first = (await row_of(db, made["id"])).last_used_at
        assert first is not None
        await client.get("/projects")
        await app.state.services.background.idle()
        assert (await row_of(db, made["id"])).last_used_at == first
        async with db.transaction() as session:
            await session.execute(
                text("UPDATE personal_access_tokens SET last_used_at = now() - interval '61 s' WHERE id = :id"),
                {"id": made["id"]},
            )
        await client.get("/projects")
        await app.state.services.background.idle()
        later = (await row_of(db, made["id"])).last_used_at
        assert later is not None
        assert later > first - timedelta(seconds=1)


async def test_whose_token_it_is_takes_one_query_by_an_index(app: Any, tenant: Tenant, db: Database) -> None:
    made = await make(tenant)
    async with machine(app, made["token"]) as client:
        await client.get(URL)
        await app.state.services.background.idle()
        seen: list[str] = []
        listener = lambda _c, _cursor, statement, *_: seen.append(statement)  # noqa: E731
        event.listen(db.engine.sync_engine, "before_cursor_execute", listener)
        try:
            assert (await client.get(URL)).status_code == 200
        finally:
            event.remove(db.engine.sync_engine, "before_cursor_execute", listener)
    # The lookup goes by the driver itself, so that what is seen here is the list alone.
    assert len(seen) == 1
    from backend.users import personal_tokens

    async with db.transaction() as session:
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        driver = (await (await session.connection()).get_raw_connection()).driver_connection
        assert driver is not None
        plan = "\n".join(row[0] for row in await driver.fetch(f"EXPLAIN {personal_tokens._OWNER_OF_TOKEN}", "x"))
    assert "uq_personal_access_tokens_digest" in plan


async def test_requests_of_a_machine_count_for_its_user(app: Any, tenant: Tenant, db: Database) -> None:
    made = await make(tenant)
    headers = [(b"authorization", f"Bearer {made['token']}".encode())]
    scope = {"app": app, "headers": headers, "client": ("192.0.2.7", 1)}
    assert caller_of(scope) == "address:192.0.2.7"
    async with machine(app, made["token"]) as client:
        await client.get("/projects")
    async with db.transaction() as session:
        user: UUID | None = await session.scalar(select(User.public_id).where(User.email == tenant.email))
    assert caller_of(scope) == f"user:{user}"
    await tenant.client.delete(f"{URL}/{made['id']}")
    async with machine(app, made["token"]) as client:
        await client.get("/projects")
    assert caller_of(scope) == "address:192.0.2.7"


async def test_an_account_has_a_bounded_number(tenant: Tenant, db: Database) -> None:
    await asyncio.gather(*[make(tenant, name=str(number)) for number in range(MAXIMUM - 2)])
    answers = await asyncio.gather(*[tenant.client.post(URL, json={"name": "Last"}) for _ in range(5)])
    assert sorted(answer.status_code for answer in answers) == [201, 201, 409, 409, 409]
    assert (await tenant.client.post(URL, json={"name": "More"})).json()["error_code"] == "TOO_MANY_TOKENS"


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "x" * 101}, {"name": "x", "expires_in_days": 0}])
async def test_a_bad_body_is_422(tenant: Tenant, body: Any) -> None:
    assert (await tenant.client.post(URL, json=body)).status_code == 422


async def test_another_users_token_cannot_be_seen_or_deleted(make_tenant: Callable[[], Awaitable[Tenant]]) -> None:
    one, other = await make_tenant(), await make_tenant()
    made = await make(one)
    assert (await other.client.get(URL)).json() == []
    assert (await other.client.delete(f"{URL}/{made['id']}")).status_code == 404
    assert len((await one.client.get(URL)).json()) == 1
