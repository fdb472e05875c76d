"""Addresses proved and passwords reset by mail, and passwords changed: what works once, and what it ends."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import func, select, update

from backend.kit.db import Database
from backend.users.models import OneUseToken, User
from tests.conftest import Tenant
from tests.users.conftest import Mailbox, text_of

VERIFY, RESEND = "/api/auth/verify-email", "/api/auth/resend-verification"
FORGOT, RESET = "/api/auth/forgot-password", "/api/auth/reset-password"
CHANGE, ME, LOGIN = "/api/users/me/change-password", "/api/users/me", "/api/auth/login"
NEW = "another long password"


async def age_tokens(db: Database, email: str, by: timedelta) -> None:
    """Makes a user's one-use tokens older."""
    async with db.transaction() as session:
        user = select(User.id).where(User.email == email).scalar_subquery()
        await session.execute(
            update(OneUseToken)
            .where(OneUseToken.user_id == user)
            .values(created_at=OneUseToken.created_at - by, expires_at=OneUseToken.expires_at - by)
        )


async def can_log_in(anonymous: httpx.AsyncClient, email: str, password: str) -> bool:
    return (await anonymous.post(LOGIN, json={"username": email, "password": password})).status_code == 200


async def reset_token(anonymous: httpx.AsyncClient, mailbox: Mailbox, email: str) -> str:
    assert (await anonymous.post(FORGOT, json={"email": email})).status_code == 202
    return await mailbox.token(email)


async def test_registration_mails_a_link_that_proves_the_address_once(
    mailbox: Mailbox, make_tenant: Callable[[], Awaitable[Tenant]], anonymous: httpx.AsyncClient, db: Database
) -> None:
    tenant = await make_tenant()
    assert (await tenant.client.get(ME)).json()["email_verified"] is False
    token = await mailbox.token(tenant.email)
    async with db.transaction() as session:
        kept = (await session.scalars(select(OneUseToken.digest))).all()
    assert token not in kept
    answers = await asyncio.gather(*[anonymous.post(VERIFY, json={"token": token}) for _ in range(5)])
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]
    assert {answer.json().get("error_code", "") for answer in answers} == {"", "LINK_NOT_VALID"}
    assert (await tenant.client.get(ME)).json()["email_verified"] is True
    again = await tenant.client.post(RESEND)
    assert (again.status_code, again.json()["error_code"]) == (409, "EMAIL_ALREADY_VERIFIED")


async def test_a_new_link_ends_the_old_one_and_comes_at_most_once_a_minute(
    mailbox: Mailbox, make_tenant: Callable[[], Awaitable[Tenant]], anonymous: httpx.AsyncClient, db: Database
) -> None:
    tenant = await make_tenant()
    old = await mailbox.token(tenant.email)
    early = await tenant.client.post(RESEND)
    assert (early.status_code, early.json()["error_code"]) == (429, "MAIL_SENT_JUST_NOW")
    await age_tokens(db, tenant.email, timedelta(minutes=2))
    answers = await asyncio.gather(*[tenant.client.post(RESEND) for _ in range(4)])
    assert sorted(answer.status_code for answer in answers) == [202, 429, 429, 429]
    new = await mailbox.token(tenant.email)
    assert len(await mailbox.to(tenant.email)) == 2
    assert (await anonymous.post(VERIFY, json={"token": old})).status_code == 400
    assert (await anonymous.post(VERIFY, json={"token": new})).status_code == 200


@pytest.mark.parametrize(("path", "hours"), [(VERIFY, 24), (RESET, 1)])
async def test_links_expire_and_fit_no_other_door(
    mailbox: Mailbox,
    make_tenant: Callable[[], Awaitable[Tenant]],
    anonymous: httpx.AsyncClient,
    db: Database,
    path: str,
    hours: int,
) -> None:
    tenant = await make_tenant()
    verify = await mailbox.token(tenant.email)
    reset = await reset_token(anonymous, mailbox, tenant.email)
    token, other = (verify, reset) if path == VERIFY else (reset, verify)
    assert (await anonymous.post(path, json={"token": other, "password": NEW})).status_code == 400
    await age_tokens(db, tenant.email, timedelta(hours=hours, minutes=1))
    late = await anonymous.post(path, json={"token": token, "password": NEW})
    assert (late.status_code, late.json()["error_code"]) == (400, "LINK_NOT_VALID")
    assert await can_log_in(anonymous, tenant.email, tenant.password)


async def test_a_reset_ends_all_sessions_and_proves_the_address(
    mailbox: Mailbox, make_tenant: Callable[[], Awaitable[Tenant]], anonymous: httpx.AsyncClient
) -> None:
    tenant = await make_tenant()
    token = await reset_token(anonymous, mailbox, tenant.email)
    short = await anonymous.post(RESET, json={"token": token, "password": "short"})
    assert short.status_code == 422  # and the link is not used up
    answers = await asyncio.gather(*[anonymous.post(RESET, json={"token": token, "password": NEW}) for _ in range(3)])
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400]
    assert (await tenant.client.get(ME)).status_code == 401
    old = {"refresh_token": tenant.login["refresh_token"]}
    assert (await anonymous.post("/api/auth/refresh-token", json=old)).status_code == 401
    assert not await can_log_in(anonymous, tenant.email, tenant.password)
    login = (await anonymous.post(LOGIN, json={"username": tenant.email, "password": NEW})).json()
    profile = await anonymous.get(ME, headers={"Authorization": f"Bearer {login['access_token']}"})
    assert profile.json()["email_verified"] is True
    assert "mot de passe a été modifié" in (await mailbox.to(tenant.email))[-1]["Subject"]


async def test_an_unknown_address_gets_the_same_answer_in_the_same_time_and_no_mail(
    mailbox: Mailbox, make_tenant: Callable[[], Awaitable[Tenant]], anonymous: httpx.AsyncClient, app: object
) -> None:
    known = [(await make_tenant()).email for _ in range(8)]
    unknown = [f"{uuid4()}@example.com" for _ in known]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    bodies = set()
    for pair in zip(known, unknown, strict=True):
        for email in pair:
            started = time.perf_counter()
            answer = await anonymous.post(FORGOT, json={"email": email})
            seconds[email in known].append(time.perf_counter() - started)
            bodies.add((answer.status_code, answer.text))
            await mailbox.to(email)
    assert len(bodies) == 1
    assert next(iter(bodies))[0] == 202
    # Neither answer waits for the search: a token row and a commit would be many milliseconds.
    assert abs(statistics.median(seconds[True]) - statistics.median(seconds[False])) < 0.01
    assert [len(await mailbox.to(email)) for email in known] == [2] * len(known)
    assert [len(await mailbox.to(email)) for email in unknown] == [0] * len(unknown)


async def test_login_takes_as_long_for_an_unknown_address(
    make_tenant: Callable[[], Awaitable[Tenant]], anonymous: httpx.AsyncClient
) -> None:
    known = (await make_tenant()).email
    seconds: dict[str, list[float]] = {known: [], "nobody@example.com": []}
    for _ in range(9):
        for email, times in seconds.items():
            started = time.perf_counter()
            answer = await anonymous.post(LOGIN, json={"username": email, "password": "wrong password"})
            times.append(time.perf_counter() - started)
            assert answer.json()["error_code"] == "BAD_CREDENTIALS"
    fast, slow = sorted(statistics.median(times) for times in seconds.values())
    assert slow < 2 * fast


async def test_answers_speak_the_language_of_the_request(anonymous: httpx.AsyncClient) -> None:
    for header, beginning in (("fr-CA", "Si un compte existe"), ("de", "If there is an account"), ("", "If there")):
        answer = await anonymous.post(FORGOT, json={"email": "x@example.com"}, headers={"Accept-Language": header})
        assert answer.json()["detail"].startswith(beginning)


async def test_many_requests_for_a_reset_send_one_mail(
    mailbox: Mailbox, make_tenant: Callable[[], Awaitable[Tenant]], anonymous: httpx.AsyncClient
) -> None:
    tenant = await make_tenant()
    before = len(await mailbox.to(tenant.email))
    answers = await asyncio.gather(*[anonymous.post(FORGOT, json={"email": tenant.email}) for _ in range(6)])
    assert {answer.status_code for answer in answers} == {202}
    assert len(await mailbox.to(tenant.email)) == before + 1


async def test_a_change_of_password_keeps_this_session_and_ends_the_others(
    mailbox: Mailbox, make_tenant: Callable[[], Awaitable[Tenant]], anonymous: httpx.AsyncClient
) -> None:
    tenant = await make_tenant()
    other = (await anonymous.post(LOGIN, json={"username": tenant.email, "password": tenant.password})).json()
    link = await reset_token(anonymous, mailbox, tenant.email)
    wrong = await tenant.client.post(CHANGE, json={"current_password": "wrong", "new_password": NEW})
    assert (wrong.status_code, wrong.json()["error_code"]) == (400, "WRONG_PASSWORD")
    body = {"current_password": tenant.password, "new_password": NEW}
    answers = await asyncio.gather(*[tenant.client.post(CHANGE, json=body) for _ in range(3)])
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400]
    assert (await tenant.client.get(ME)).status_code == 200
    gone = await anonymous.get(ME, headers={"Authorization": f"Bearer {other['access_token']}"})
    assert gone.status_code == 401
    assert not await can_log_in(anonymous, tenant.email, tenant.password)
    assert await can_log_in(anonymous, tenant.email, NEW)
    assert (await anonymous.post(RESET, json={"token": link, "password": "a third password"})).status_code == 400


async def test_a_login_that_began_before_a_reset_opens_nothing_after_it(
    mailbox: Mailbox,
    make_tenant: Callable[[], Awaitable[Tenant]],
    anonymous: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from backend.users import passwords

    tenant = await make_tenant()
    token = await reset_token(anonymous, mailbox, tenant.email)
    checked, changed = asyncio.Event(), asyncio.Event()
    verify = passwords.verify_password

    async def verify_slowly(password: str, hashed: str | None) -> bool:
        good = await verify(password, hashed)
        checked.set()
        await changed.wait()
        return good

    monkeypatch.setattr(passwords, "verify_password", verify_slowly)
    login = asyncio.create_task(can_log_in(anonymous, tenant.email, tenant.password))
    await checked.wait()
    assert (await anonymous.post(RESET, json={"token": token, "password": NEW})).status_code == 200
    changed.set()
    assert await login is False


@pytest.mark.parametrize(
    ("header", "subject"),
    [
        ("", "Confirmez"),
        ("de", "Confirmez"),
        ("en", "Confirm your"),
        ("en-GB,en;q=0.9", "Confirm your"),
        ("fr;q=0.4, en;q=0.8", "Confirm your"),
        ("en;q=0, fr;q=0.1", "Confirmez"),
        ("q=;;,en;q=x,fr", "Confirmez"),
    ],
)
async def test_mails_speak_the_language_of_the_registration(
    mailbox: Mailbox, anonymous: httpx.AsyncClient, header: str, subject: str
) -> None:
    email = f"{uuid4()}@example.com"
    body = {"email": email, "password": "a long password", "name": "Zoé O'Brien-Müller"}
    headers = {"Accept-Language": header}
    assert (await anonymous.post("/api/auth/register", json=body, headers=headers)).status_code == 201
    (mail,) = await mailbox.to(email)
    assert mail["Subject"].startswith(subject)
    assert "Zoé O'Brien-Müller," in text_of(mail)
    assert "http://localhost:3000/verify-email?token=" in text_of(mail)


@pytest.mark.parametrize("name", ["Win at evil.example", "http://evil.example", "{link}", "{name.__class__}", "a\nb"])
async def test_a_name_brings_no_link_into_a_mail_to_somebody_else(
    mailbox: Mailbox, anonymous: httpx.AsyncClient, name: str
) -> None:
    email = f"{uuid4()}@example.com"
    body = {"email": email, "password": "a long password", "name": name}
    assert (await anonymous.post("/api/auth/register", json=body)).status_code == 201
    text = text_of((await mailbox.to(email))[0])
    assert name not in text
    assert text.startswith("Bonjour,")


async def test_a_mail_server_that_refuses_fails_no_request(
    mailbox: Mailbox, make_tenant: Callable[[], Awaitable[Tenant]], db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    mailbox.refusal = "554 no"
    tenant = await make_tenant()
    assert await mailbox.to(tenant.email) == []
    assert "was not sent" in caplog.text
    async with db.transaction() as session:
        user = select(User.id).where(User.email == tenant.email).scalar_subquery()
        count = await session.scalar(select(func.count()).where(OneUseToken.user_id == user))
    assert count == 1


async def test_a_registration_that_fails_sends_nothing(
    mailbox: Mailbox, tenant: Tenant, anonymous: httpx.AsyncClient
) -> None:
    before = len(await mailbox.to(tenant.email))
    body = {"email": tenant.email, "password": "a long password", "name": "Again"}
    assert (await anonymous.post("/api/auth/register", json=body)).status_code == 409
    assert len(await mailbox.to(tenant.email)) == before
