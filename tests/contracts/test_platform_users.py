"""The contract's examples of authentication, profile and subscription, and what lies beyond them."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from backend.kit.db import Database
from backend.users.models import Subscription
from tests.conftest import Tenant
from tests.contracts.shapes import matches

USER = {
    "id": int,
    "email": str,
    "name": str,
    "is_active": True,
    "has_completed_onboarding": False,
    "created_at": datetime,
}
TOKENS = {"access_token": str, "refresh_token": str, "token_type": "bearer", "user": USER}
PROFILE = {
    **USER,
    "has_received_free_credits": False,
    "free_characters_remaining": int,
    "total_characters_used": int,
}
SUBSCRIPTION = {
    "user_id": int,
    "plan": str,
    "status": "active",
    "created_at": datetime,
}
PASSWORD = "password123"


@pytest.fixture
async def registered(anonymous: httpx.AsyncClient) -> dict[str, Any]:
    body = {"email": f"{uuid4()}@example.com", "password": PASSWORD, "name": "John Doe"}
    answer = await anonymous.post("/api/auth/register", json=body)
    assert answer.status_code == 201
    found: dict[str, Any] = answer.json()
    return found


async def test_registration(registered: dict[str, Any]) -> None:
    matches(registered, {**USER, "name": "John Doe"})
    assert set(registered) == set(USER)


@pytest.mark.parametrize("as_form", [False, True])
async def test_login_refresh_and_logout(
    anonymous: httpx.AsyncClient, registered: dict[str, Any], as_form: bool
) -> None:
    body = {"username": registered["email"], "password": PASSWORD}
    sent: dict[str, Any] = {"data": body} if as_form else {"json": body}
    login = await anonymous.post("/api/auth/login", **sent)
    assert login.status_code == 200
    matches(login.json(), TOKENS)
    assert login.json()["user"] == registered
    refreshed = await anonymous.post("/api/auth/refresh-token", json={"refresh_token": login.json()["refresh_token"]})
    assert refreshed.status_code == 200
    matches(refreshed.json(), TOKENS)
    headers = {"Authorization": f"Bearer {refreshed.json()['access_token']}"}
    left = await anonymous.post("/api/auth/logout", headers=headers)
    assert (left.status_code, left.json()) == (200, {"detail": "Successfully logged out"})
    # Not on the client's side alone.
    assert (await anonymous.get("/api/users/me", headers=headers)).status_code == 401
    again = {"refresh_token": refreshed.json()["refresh_token"]}
    assert (await anonymous.post("/api/auth/refresh-token", json=again)).status_code == 401


async def test_the_profile_and_its_change(tenant: Tenant) -> None:
    before = (await tenant.client.get("/api/users/me")).json()
    matches(before, {**PROFILE, "free_characters_remaining": 100_000_000, "total_characters_used": 0})
    changed = await tenant.client.put("/api/users/me", json={"name": "John Updated", "has_completed_onboarding": True})
    assert changed.status_code == 200
    matches(changed.json(), {**USER, "name": "John Updated", "has_completed_onboarding": True})
    assert set(changed.json()) == set(USER)
    after = (await tenant.client.get("/api/users/me")).json()
    assert {name for name in before if before[name] != after[name]} == {"name", "has_completed_onboarding"}


async def test_what_is_left_out_stays(tenant: Tenant) -> None:
    await tenant.client.put("/api/users/me", json={"has_completed_onboarding": True})
    await tenant.client.put("/api/users/me", json={"name": "Jane"})
    answer = await tenant.client.put("/api/users/me", json={})
    assert (answer.json()["name"], answer.json()["has_completed_onboarding"]) == ("Jane", True)


@pytest.mark.parametrize(
    "body",
    [{"name": None}, {"name": " "}, {"name": "x" * 201}, {"has_completed_onboarding": None}, {"language": "de"}, []],
)
async def test_a_bad_change_is_422(tenant: Tenant, body: Any) -> None:
    answer = await tenant.client.put("/api/users/me", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (422, "VALIDATION_ERROR")


async def test_what_is_not_in_the_body_cannot_be_changed(tenant: Tenant) -> None:
    before = (await tenant.client.get("/api/users/me")).json()
    taken = {"id": 1, "email": "x@example.com", "is_active": False, "has_received_free_credits": True}
    await tenant.client.put("/api/users/me", json={**taken, "email_verified_at": "2000-01-01", "password_hash": "!"})
    assert (await tenant.client.get("/api/users/me")).json() == before


async def test_without_a_subscription_there_is_the_free_plan(tenant: Tenant) -> None:
    answer = await tenant.client.get("/api/users/me/subscription")
    assert answer.status_code == 200
    nothing = dict.fromkeys(("id", "stripe_subscription_id", "current_period_start", "current_period_end"))
    matches(answer.json(), {**SUBSCRIPTION, **nothing, "plan": "Free", "user_id": tenant.login["user"]["id"]})


async def test_a_subscription_has_the_documented_fields_and_its_plans_limits(tenant: Tenant, db: Database) -> None:
    start, end = datetime(2023, 3, 10, 12, tzinfo=UTC), datetime(2023, 4, 10, 12, tzinfo=UTC)
    stripe = f"sub_{uuid4().hex}"
    async with db.transaction() as session:
        session.add(
            Subscription(
                user_id=tenant.login["user"]["id"],
                stripe_subscription_id=stripe,
                plan="Small",
                status="active",
                current_period_start=start,
                current_period_end=end,
            )
        )
    found = (await tenant.client.get("/api/users/me/subscription")).json()
    matches(
        found,
        {
            **SUBSCRIPTION,
            "id": int,
            "stripe_subscription_id": stripe,
            "plan": "Small",
            "current_period_start": datetime,
            "current_period_end": datetime,
            "max_projects": 2,
            "max_fine_tunings": 1,
        },
    )
    assert datetime.fromisoformat(found["current_period_end"]) == end


async def test_sessions_are_listed_and_ended(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    url = "/api/users/me/sessions"
    login = {"username": tenant.email, "password": tenant.password}
    others = [
        (await anonymous.post("/api/auth/login", json=login, headers={"User-Agent": f"Browser {number}"})).json()
        for number in range(3)
    ]
    listed = (await tenant.client.get(url)).json()
    matches(
        listed,
        [{"id": int, "user_agent": str, "created_at": datetime, "last_used_at": datetime, "is_current": bool}],
    )
    assert [row["is_current"] for row in listed] == [False, False, False, True]
    assert [row["user_agent"] for row in listed[:3]] == ["Browser 2", "Browser 1", "Browser 0"]
    window = await tenant.client.get(url, params={"limit": 1, "offset": 1})
    assert (window.json(), window.headers["X-Total-Count"]) == ([listed[1]], "4")
    await anonymous.post("/api/auth/refresh-token", json={"refresh_token": others[0]["refresh_token"]})
    used = {row["id"]: row["last_used_at"] for row in (await tenant.client.get(url)).json()}
    assert [used[row["id"]] > row["last_used_at"] for row in listed] == [False, False, True, False]
    assert (await tenant.client.delete(f"{url}/{listed[0]['id']}")).status_code == 204
    assert (await tenant.client.delete(f"{url}/{listed[0]['id']}")).json()["error_code"] == "SESSION_NOT_FOUND"
    dead = {"Authorization": f"Bearer {others[2]['access_token']}"}
    assert (await anonymous.get("/api/users/me", headers=dead)).status_code == 401
    assert (await tenant.client.delete(url)).json() == {"ended": 2}
    assert [row["is_current"] for row in (await tenant.client.get(url)).json()] == [True]
    for other in others:
        assert (
            await anonymous.post("/api/auth/refresh-token", json={"refresh_token": other["refresh_token"]})
        ).status_code == 401


async def test_a_stolen_refresh_token_ends_the_session_for_thief_and_owner(
    tenant: Tenant, anonymous: httpx.AsyncClient
) -> None:
    stolen = {"refresh_token": tenant.login["refresh_token"]}
    thief = (await anonymous.post("/api/auth/refresh-token", json=stolen)).json()
    owner = await anonymous.post("/api/auth/refresh-token", json=stolen)
    assert (owner.status_code, owner.json()["error_code"]) == (401, "REFRESH_TOKEN_REUSED")
    headers = {"Authorization": f"Bearer {thief['access_token']}"}
    assert (await anonymous.get("/api/users/me", headers=headers)).status_code == 401
    login = {"username": tenant.email, "password": tenant.password}
    assert (await anonymous.post("/api/auth/login", json=login)).status_code == 200


async def test_a_project_beyond_the_plan_is_refused_on_both_faces(
    make_tenant: Callable[[], Awaitable[Tenant]], db: Database
) -> None:
    for path in ("/projects", "/api/projects"):
        tenant = await make_tenant()
        async with db.transaction() as session:
            session.add(Subscription(user_id=tenant.login["user"]["id"], plan="Small", status="active"))
        post = tenant.client.post
        answers = await asyncio.gather(*[post(path, json={"name": f"Project {number}"}) for number in range(6)])
        assert sorted(answer.status_code for answer in answers) == [201, 201, 403, 403, 403, 403]
        refused = next(answer.json() for answer in answers if answer.status_code == 403)
        assert refused["error_code"] == "PLAN_LIMIT_REACHED"
        assert refused["context"] == {"plan": "Small", "limit": "max_projects", "allowed": 2, "used": 2}
        assert "max_projects" in refused["detail"]
        made = next(answer.json() for answer in answers if answer.status_code == 201)
        assert (await tenant.client.delete(f"{path}/{made['id']}")).status_code == 204
        assert (await post(path, json={"name": "In its place"})).status_code == 201
