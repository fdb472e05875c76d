"""Registration, login, rotation and logout over HTTP."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import uuid4

import httpx
import pytest
from jose import jwt

from backend.kit.config import Settings
from backend.users.tokens import ALGORITHM, AUDIENCE, ISSUER, TokenSigner
from tests.conftest import Tenant

REFRESH = "/api/auth/refresh-token"


async def test_the_profile_belongs_to_the_token(tenant: Tenant) -> None:
    profile = (await tenant.client.get("/api/users/me")).json()
    assert profile["email"] == tenant.email
    assert profile["free_characters_remaining"] == 100_000_000
    assert profile["total_characters_used"] == 0


async def test_an_email_is_registered_once_whatever_its_case(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    body = {"email": tenant.email.upper(), "password": "another password", "name": "Double"}
    answer = await anonymous.post("/api/auth/register", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (409, "EMAIL_TAKEN")


async def test_simultaneous_registrations_make_one_account(anonymous: httpx.AsyncClient) -> None:
    body = {"email": f"{uuid4()}@example.com", "password": "a long password", "name": "Twice"}
    answers = await asyncio.gather(*[anonymous.post("/api/auth/register", json=body) for _ in range(4)])
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]


async def test_login_takes_the_form_of_the_interactive_docs(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    form = {"username": tenant.email, "password": tenant.password, "grant_type": "password"}
    answer = await anonymous.post("/api/auth/login", data=form)
    assert answer.status_code == 200
    assert answer.json()["token_type"] == "bearer"


async def test_wrong_password_and_unknown_address_look_the_same(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    known = await anonymous.post("/api/auth/login", json={"username": tenant.email, "password": "wrong"})
    unknown = await anonymous.post("/api/auth/login", json={"username": "nobody@example.com", "password": "wrong"})
    assert known.status_code == unknown.status_code == 401
    assert known.json() == unknown.json()


async def test_the_seeded_local_owner_cannot_log_in(anonymous: httpx.AsyncClient) -> None:
    for password in ("!", "", "password"):
        answer = await anonymous.post("/api/auth/login", json={"username": "owner@localhost", "password": password})
        assert answer.status_code in (401, 422)


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"{broken", b'{"username": 5, "password": null}'])
async def test_a_bad_login_body_is_422(anonymous: httpx.AsyncClient, body: bytes) -> None:
    answer = await anonymous.post("/api/auth/login", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error_code"]) == (422, "VALIDATION_ERROR")
    assert "password" not in answer.json()["context"].get("input", "")


async def test_a_used_refresh_token_ends_the_whole_session(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    first = tenant.login["refresh_token"]
    second = (await anonymous.post(REFRESH, json={"refresh_token": first})).json()
    assert (await anonymous.post(REFRESH, json={"refresh_token": first})).json()["error_code"] == "REFRESH_TOKEN_REUSED"
    # The thief and the owner are both out: neither the new refresh token nor any access token works any more.
    assert (await anonymous.post(REFRESH, json={"refresh_token": second["refresh_token"]})).status_code == 401
    for token in (tenant.login["access_token"], second["access_token"]):
        answer = await anonymous.get("/api/users/me", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401


async def test_simultaneous_refreshes_give_one_pair(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    body = {"refresh_token": tenant.login["refresh_token"]}
    answers = await asyncio.gather(*[anonymous.post(REFRESH, json=body) for _ in range(5)])
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401, 401]


async def test_logout_kills_access_and_refresh(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    assert (await tenant.client.post("/api/auth/logout")).json() == {"detail": "Successfully logged out"}
    assert (await tenant.client.get("/api/users/me")).status_code == 401
    assert (await anonymous.post(REFRESH, json={"refresh_token": tenant.login["refresh_token"]})).status_code == 401


async def test_logout_of_one_login_leaves_the_others(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    body = {"username": tenant.email, "password": tenant.password}
    other = (await anonymous.post("/api/auth/login", json=body)).json()["access_token"]
    await anonymous.post("/api/auth/logout", headers={"Authorization": f"Bearer {other}"})
    assert (await tenant.client.get("/api/users/me")).status_code == 200


@pytest.fixture
def forge(settings: Settings, tenant: Tenant) -> Callable[..., str]:
    """Makes tokens like ours with one thing changed."""
    key = settings.secret_key.get_secret_value()
    good = jwt.get_unverified_claims(tenant.login["access_token"])

    def make(*, signed_with: str = key, algorithm: str = ALGORITHM, headers: dict | None = None, **changes) -> str:
        claims = {name: value for name, value in {**good, **changes}.items() if value is not None}
        return jwt.encode(claims, signed_with, algorithm=algorithm, headers=headers)

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {"typ": "refresh"},
        {"typ": None},
        {"aud": "somebody-else"},
        {"aud": None},
        {"iss": "somebody-else"},
        {"iss": None},
        {"exp": None},
        {"exp": 1},
        {"sub": None},
        {"sub": "not-a-uuid"},
        {"sid": None},
        {"sid": "01a20159-0000-7000-8000-000000000000"},
        {"jti": None},
        {"signed_with": "x" * 40},
        {"algorithm": "HS512"},
        {"headers": {"crit": ["b64"]}},
        {"headers": {"kid": "../../dev/null"}},
    ],
    ids=str,
)
async def test_a_forged_token_is_refused(
    anonymous: httpx.AsyncClient, forge: Callable[..., str], changes: dict
) -> None:
    answer = await anonymous.get("/api/users/me", headers={"Authorization": f"Bearer {forge(**changes)}"})
    assert (answer.status_code, answer.json()["error_code"]) == (401, "BAD_TOKEN")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_forge_makes_good_tokens_too(anonymous: httpx.AsyncClient, forge: Callable[..., str]) -> None:
    answer = await anonymous.get("/api/users/me", headers={"Authorization": f"Bearer {forge()}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "eyJhbGciOiJub25lIn0.e30."])
async def test_what_is_no_token_is_refused(anonymous: httpx.AsyncClient, token: str) -> None:
    answer = await anonymous.get("/api/users/me", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401


async def test_an_access_token_does_not_refresh(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    answer = await anonymous.post(REFRESH, json={"refresh_token": tenant.login["access_token"]})
    assert answer.status_code == 401


async def test_no_token_names_where_to_get_one(anonymous: httpx.AsyncClient) -> None:
    answer = await anonymous.get("/projects")
    assert answer.status_code == 401
    assert "/api/auth/login" in answer.json()["detail"]


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        TokenSigner("short")


def test_tokens_name_issuer_and_audience() -> None:
    token = TokenSigner("k" * 32).sign("access", user=uuid4(), session=uuid4(), lifetime=timedelta(minutes=1))
    claims = jwt.get_unverified_claims(token)
    assert (claims["iss"], claims["aud"], claims["typ"]) == (ISSUER, AUDIENCE, "access")


async def test_two_tenants_do_not_see_each_other(make_tenant: Callable[[], Awaitable[Tenant]]) -> None:
    one, other = await make_tenant(), await make_tenant()
    project = await one.make_project()
    assert (await other.client.get(f"/projects/{project}")).json()["error_code"] == "PROJECT_NOT_FOUND"
    assert (await other.client.get("/projects")).json()["total"] == 0
