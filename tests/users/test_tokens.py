"""Bearer tokens that look right and are not, and those that are forgotten."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from jose import jwt
from sqlalchemy import select, update

from backend.kit.config import Settings
from backend.kit.db import Database
from backend.users.forgetting import forget_ended
from backend.users.models import OneUseToken, PersonalAccessToken, User, UserSession
from backend.users.tokens import ALGORITHM
from tests.conftest import Tenant

ME, REFRESH = "/api/users/me", "/api/auth/refresh-token"


def encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "", "HS384", "RS256", "ES256", None, 5])
@pytest.mark.parametrize("signed", ["without", "with the old signature"])
@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_no_other_algorithm_is_taken(
    anonymous: httpx.AsyncClient, tenant: Tenant, algorithm: Any, signed: str, kind: str
) -> None:
    good = tenant.login[kind]
    _, claims, signature = good.split(".")
    header = encoded({"typ": "JWT", **({} if algorithm is None else {"alg": algorithm})})
    forged = f"{header}.{claims}.{signature if signed.startswith('with ') else ''}"
    if kind == "access_token":
        answer = await anonymous.get(ME, headers={"Authorization": f"Bearer {forged}"})
    else:
        answer = await anonymous.post(REFRESH, json={"refresh_token": forged})
    assert (answer.status_code, answer.json()["error_code"]) == (401, "BAD_TOKEN")
    # And the attempt cost the user nothing.
    assert (await tenant.client.get(ME)).status_code == 200


async def test_a_refresh_token_opens_nothing(anonymous: httpx.AsyncClient, tenant: Tenant) -> None:
    headers = {"Authorization": f"Bearer {tenant.login['refresh_token']}"}
    for path in (ME, "/projects", "/api/projects"):
        assert (await anonymous.get(path, headers=headers)).json()["error_code"] == "BAD_TOKEN"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another-api"},
        {"aud": ["finetuneflow-api", "another-api"], "iss": "another"},
        {"iss": "another"},
        {"exp": 1},
        {"typ": "access"},
        {"sid": None},
    ],
    ids=str,
)
async def test_a_refresh_token_for_somebody_else_is_refused(
    anonymous: httpx.AsyncClient, tenant: Tenant, settings: Settings, changes: dict[str, Any]
) -> None:
    claims = {**jwt.get_unverified_claims(tenant.login["refresh_token"]), **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    forged = jwt.encode(claims, settings.secret_key.get_secret_value(), algorithm=ALGORITHM)
    answer = await anonymous.post(REFRESH, json={"refresh_token": forged})
    assert (answer.status_code, answer.json()["error_code"]) == (401, "BAD_TOKEN")
    good = await anonymous.post(REFRESH, json={"refresh_token": tenant.login["refresh_token"]})
    assert good.status_code == 200


async def test_claims_of_one_user_and_session_of_another_are_refused(
    anonymous: httpx.AsyncClient, make_tenant: Callable[[], Any], settings: Settings
) -> None:
    one, other = await make_tenant(), await make_tenant()
    mine, theirs = (jwt.get_unverified_claims(tenant.login["access_token"]) for tenant in (one, other))
    mixed = jwt.encode({**theirs, "sid": mine["sid"]}, settings.secret_key.get_secret_value(), algorithm=ALGORITHM)
    assert (await anonymous.get(ME, headers={"Authorization": f"Bearer {mixed}"})).status_code == 401


async def test_what_ended_long_ago_is_forgotten(tenant: Tenant, db: Database) -> None:
    made = [(await tenant.client.post(f"{ME}/tokens", json={"name": str(n)})).json()["id"] for n in range(3)]
    await tenant.client.delete(f"{ME}/tokens/{made[0]}")
    await tenant.client.delete(f"{ME}/tokens/{made[1]}")
    long_ago, lately = datetime.now(UTC) - timedelta(days=31), datetime.now(UTC) - timedelta(days=29)
    async with db.transaction() as session:
        user = await session.scalar(select(User.id).where(User.email == tenant.email))
        for token, revoked in ((made[0], long_ago), (made[1], lately)):
            row = update(PersonalAccessToken).where(PersonalAccessToken.id == token)
            await session.execute(row.values(revoked_at=revoked))
        session.add_all(
            UserSession(user_id=user, refresh_digest=f"d{n}", expires_at=expires, user_agent=f"old {n}")
            for n, expires in enumerate((long_ago, lately))
        )
        await session.execute(update(OneUseToken).where(OneUseToken.user_id == user).values(expires_at=long_ago))
    assert await forget_ended(db) >= 3
    async with db.transaction() as session:
        tokens = select(PersonalAccessToken.id).where(PersonalAccessToken.user_id == user)
        assert sorted((await session.scalars(tokens)).all()) == made[1:]
        agents = select(UserSession.user_agent).where(UserSession.user_id == user, UserSession.user_agent.like("old%"))
        assert (await session.scalars(agents)).all() == ["old 1"]
        assert (await session.scalars(select(OneUseToken.id).where(OneUseToken.user_id == user))).all() == []
    assert (await tenant.client.get(ME)).status_code == 200
