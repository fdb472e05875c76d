"""The contract's table of rate limits over HTTP: its numbers, who shares them, and what an answer says about them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from backend.api.rate_limit import EXEMPT_PATHS
from backend.kit.config import Settings
from backend.main import create_app
from tests.conftest import Tenant

Opener = Callable[..., AbstractAsyncContextManager[FastAPI]]
NOBODYS = UUID(int=7)
PROJECT = f"/projects/{NOBODYS}"
FILE: dict[str, Any] = {"files": [("files", ("a.txt", b"Some words."))]}


@pytest.fixture
def opened(settings: Settings) -> Opener:
    """An application that counts, beside that of the other tests and with the same users."""

    @asynccontextmanager
    async def open_app(**update: Any) -> AsyncIterator[FastAPI]:
        app = create_app(settings.model_copy(update={"rate_limits": True, **update}))
        async with app.router.lifespan_context(app):
            yield app

    return open_app


@pytest.fixture
async def app_as_set(opened: Opener) -> AsyncIterator[FastAPI]:
    """With the limits of the settings' defaults, which are the contract's."""
    async with opened() as app:
        yield app


def client_of(app: Any, tenant: Tenant | None = None, *, address: str | None = None) -> httpx.AsyncClient:
    headers = {"Authorization": tenant.client.headers["Authorization"]} if tenant else {}
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=(address or new_address(), 1))
    return httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers, timeout=60)


def new_address() -> str:
    return f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}.{secrets.randbelow(256)}"


TABLE: list[tuple[int, list[tuple[str, str, dict[str, Any]]]]] = [
    (10, [("POST", f"{PROJECT}/files/upload", FILE)]),
    (5, [("POST", f"{PROJECT}/chunks/generate", {}), ("POST", f"{PROJECT}/dataset/generate", {})]),
    (3, [("POST", f"{PROJECT}/train/start", {}), ("POST", f"{PROJECT}/train/cancel", {})]),
    (60, [("GET", "/projects", {}), ("GET", "/api/users/me", {}), ("GET", "/no/such/address", {})]),
    (30, [("POST", f"{PROJECT}/export", {}), ("POST", f"/jobs/{NOBODYS}/cancel", {})]),
    (60, [("PATCH", PROJECT, {"json": {}}), ("DELETE", PROJECT, {})]),
]


@pytest.mark.parametrize(("limit", "requests"), TABLE, ids=["upload", "generate", "train", "get", "post", "change"])
async def test_the_table(
    app_as_set: FastAPI, tenant: Tenant, limit: int, requests: list[tuple[str, str, dict[str, Any]]]
) -> None:
    async with client_of(app_as_set, tenant) as client:
        for number in range(limit):
            method, path, body = requests[number % len(requests)]
            answer = await client.request(method, path, **body)
            assert answer.status_code != 429, f"request {number + 1} of {limit}"
            assert answer.headers["ratelimit-limit"] == str(limit)
            assert answer.headers["ratelimit-remaining"] == str(limit - number - 1)
            assert 1 <= int(answer.headers["ratelimit-reset"]) <= 60
        for method, path, body in requests:
            refused = await client.request(method, path, **body)
            assert refused.status_code == 429
            wait = int(refused.headers["retry-after"])
            assert 1 <= wait <= 60
            assert refused.json() == {
                "detail": f"Too many requests of this kind: {limit} in 60 seconds are allowed. "
                f"Wait {wait} seconds, then try again.",
                "error_code": "RATE_LIMITED",
                "context": {"limit": limit, "window_seconds": 60, "retry_after_seconds": wait},
            }
            assert refused.headers["ratelimit-limit"] == str(limit)
            assert refused.headers["ratelimit-remaining"] == "0"
            assert refused.headers["ratelimit-reset"] == str(wait)
            assert refused.headers["x-request-id"]
        # The other rows have their own count.
        other = "POST" if method == "GET" else "GET"
        assert (await client.request(other, "/projects")).status_code != 429


async def test_what_is_refused_is_not_done(opened: Opener, tenant: Tenant) -> None:
    async with opened(rate_limit_post=1) as app, client_of(app, tenant) as client:
        names = [(await client.post("/projects", json={"name": name})).status_code for name in "ab"]
    assert names == [201, 429]
    assert (await tenant.client.get("/projects")).json()["total"] == 1


async def test_users_do_not_share_and_addresses_of_a_user_do(opened: Opener, make_tenant: Any) -> None:
    one, other = await make_tenant(), await make_tenant()
    address = new_address()
    async with opened(rate_limit_get=2) as app:
        async with client_of(app, one, address=address) as client:
            assert [(await client.get("/projects")).status_code for _ in range(3)] == [200, 200, 429]
        async with client_of(app, one) as elsewhere:
            assert (await elsewhere.get("/projects")).status_code == 429
        async with client_of(app, other, address=address) as client:
            assert (await client.get("/projects")).status_code == 200


async def test_processes_share_one_count(opened: Opener, tenant: Tenant) -> None:
    async with opened(rate_limit_get=4) as first, opened(rate_limit_get=4) as second:
        async with client_of(first, tenant) as one, client_of(second, tenant) as other:
            answers = [await client.get("/projects") for client in (one, other, one, other, one, other)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2
    assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["3", "2", "1", "0", "0", "0"]


async def test_requests_at_once_are_counted_one_by_one(opened: Opener, tenant: Tenant) -> None:
    async with opened(rate_limit_get=20) as app, client_of(app, tenant) as client:
        answers = await asyncio.gather(*[client.get("/api/users/me") for _ in range(50)])
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 30
    left = [int(answer.headers["ratelimit-remaining"]) for answer in answers if answer.status_code == 200]
    assert sorted(left) == list(range(20))


async def test_the_window_slides(opened: Opener, tenant: Tenant) -> None:
    async with opened(rate_limit_get=2, rate_limit_window_seconds=2) as app, client_of(app, tenant) as client:
        assert (await client.get("/projects")).status_code == 200
        await asyncio.sleep(1.2)
        assert (await client.get("/projects")).status_code == 200
        refused = await client.get("/projects")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        await asyncio.sleep(int(refused.headers["retry-after"]))
        # The first one has left the window; the second one has not.
        assert [(await client.get("/projects")).status_code for _ in range(2)] == [200, 429]


async def test_a_refused_request_does_not_lengthen_the_wait(opened: Opener, tenant: Tenant) -> None:
    async with opened(rate_limit_get=1, rate_limit_window_seconds=2) as app, client_of(app, tenant) as client:
        assert (await client.get("/projects")).status_code == 200
        answers = []
        for _ in range(9):
            await asyncio.sleep(0.25)
            answers.append((await client.get("/projects")).status_code)
        # Refused again and again, and free once the first one has left the window; on a slow machine a turn earlier.
        assert answers[0] == 429
        assert 200 in answers


async def test_without_a_token_of_ours_the_address_counts(opened: Opener, tenant: Tenant) -> None:
    address = new_address()
    async with opened(rate_limit_get=2) as app:
        async with client_of(app, address=address) as client:
            forged = {"Authorization": f"{tenant.client.headers['Authorization']}x"}
            answers = [await client.get("/projects", headers=headers) for headers in ({}, forged, {}, forged)]
            assert [answer.status_code for answer in answers] == [401, 401, 429, 429]
            # A made-up header is no other address.
            spoofed = await client.get("/projects", headers={"X-Forwarded-For": new_address()})
            assert spoofed.status_code == 429
        async with client_of(app) as elsewhere:
            assert (await elsewhere.get("/projects")).status_code == 401
        async with client_of(app, tenant, address=address) as client:
            assert (await client.get("/projects")).status_code == 200


async def test_behind_a_trusted_proxy_the_clients_address_counts(opened: Opener) -> None:
    proxy, client_address, another = new_address(), new_address(), new_address()
    async with opened(rate_limit_get=1) as app:
        server: Any = ProxyHeadersMiddleware(app, trusted_hosts=proxy)  # type: ignore[arg-type]  # what uvicorn does
        async with client_of(server, address=proxy) as client:
            # What the client itself sent stands before what the proxy adds.
            chains = [client_address, f"1.2.3.4, {client_address}", another]
            answers = [await client.get("/projects", headers={"X-Forwarded-For": chain}) for chain in chains]
    assert [answer.status_code for answer in answers] == [401, 429, 401]


async def test_an_ipv6_network_is_one_address(opened: Opener) -> None:
    network = ":".join(f"{secrets.randbelow(65536):x}" for _ in range(3))
    async with opened(rate_limit_get=1) as app:
        statuses = []
        for address in (f"2001:{network}::1", f"2001:{network}:ffff::2", f"2002:{network}::1"):
            async with client_of(app, address=address) as client:
                statuses.append((await client.get("/projects")).status_code)
    assert statuses == [401, 429, 401]


async def test_the_local_owner_is_one_user(opened: Opener) -> None:
    async with opened(rate_limit_get=2, rate_limit_window_seconds=2, auth_mode="local") as app:
        statuses = []
        for host in ("127.0.0.1", "::1"):
            transport = httpx.ASGITransport(app=app, client=(host, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                statuses += [(await client.get("/projects")).status_code for _ in range(2)]
    assert statuses == [200, 200, 429, 429]


async def test_an_event_stream_counts_once(opened: Opener, tenant: Tenant) -> None:
    project = await tenant.make_project()
    await tenant.upload(project, "a.txt", b"Some words of a document that is long enough.")
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate")).json()["job_id"]
    await tenant.client.post(f"/jobs/{job}/cancel")
    async with opened(rate_limit_get=2) as app, client_of(app, tenant) as client:
        stream = await client.get(f"/jobs/{job}/events")
        assert (stream.status_code, stream.headers["ratelimit-remaining"]) == (200, "1")
        assert b"event: complete" in stream.content
        assert (await client.get(f"/jobs/{job}")).headers["ratelimit-remaining"] == "0"


async def test_probes_and_preflights_are_not_counted(opened: Opener) -> None:
    async with opened(rate_limit_get=1, cors_origins=["https://app.example.com"]) as app, client_of(app) as client:
        answers = [await client.get("/health") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert all("ratelimit-limit" not in answer.headers for answer in answers)
        origin = {"Origin": "https://app.example.com"}
        asking = {**origin, "Access-Control-Request-Method": "GET"}
        assert [(await client.options("/projects", headers=asking)).status_code for _ in range(3)] == [200] * 3
        answers = [await client.get("/projects", headers=origin) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [401, 429]
    # A page of the other origin can read why it was refused.
    assert answers[1].headers["access-control-allow-origin"] == origin["Origin"]
    exposed = answers[1].headers["access-control-expose-headers"].split(", ")
    assert {"Retry-After", "X-Total-Count", "Content-Disposition", "X-First-Token-Ms"} <= set(exposed)


async def test_attempts_to_log_in_are_counted_by_account_and_address(opened: Opener, make_tenant: Any) -> None:
    victim, other = await make_tenant(), await make_tenant()
    address = new_address()
    async with opened(rate_limit_post=1000) as app:
        async with client_of(app, address=address) as client:

            async def log_in(email: str, password: str) -> httpx.Response:
                return await client.post("/api/auth/login", json={"username": email, "password": password})

            guesses = [await log_in(victim.email, f"guess {number}") for number in range(10)]
            assert [answer.status_code for answer in guesses] == [401] * 10
            refused = await log_in(victim.email.upper(), victim.password)
            assert (refused.status_code, refused.json()["error_code"]) == (429, "RATE_LIMITED")
            assert refused.json()["context"]["limit"] == 10
            assert refused.headers["retry-after"] == str(refused.json()["context"]["retry_after_seconds"])
            assert (refused.headers["ratelimit-limit"], refused.headers["ratelimit-remaining"]) == ("10", "0")
            assert (await log_in(other.email, other.password)).status_code == 200
        async with client_of(app) as elsewhere:
            body = {"username": victim.email, "password": victim.password}
            assert (await elsewhere.post("/api/auth/login", json=body)).status_code == 200


async def test_without_redis_requests_pass_and_the_log_says_so_once(
    opened: Opener, tenant: Tenant, capsys: pytest.CaptureFixture[str]
) -> None:
    async with opened(redis_url="redis://127.0.0.1:9/0", rate_limit_get=1) as app, client_of(app, tenant) as client:
        answers = [await client.get("/projects") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert all("ratelimit-limit" not in answer.headers for answer in answers)
    assert capsys.readouterr().err.count("requests are not counted") == 1


async def test_a_frozen_redis_delays_one_request_only(opened: Opener, tenant: Tenant) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    frozen = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{frozen.sockets[0].getsockname()[1]}/0"
    clock = asyncio.get_running_loop()
    async with opened(redis_url=url) as app, client_of(app, tenant) as client:
        seconds = []
        for _ in range(3):
            started = clock.time()
            assert (await client.get("/projects")).status_code == 200
            seconds.append(clock.time() - started)
    frozen.close()
    assert seconds[0] < 2.5
    assert max(seconds[1:]) < 0.5


async def test_switched_off_nothing_is_counted(opened: Opener, tenant: Tenant) -> None:
    async with opened(rate_limits=False, rate_limit_get=1) as app, client_of(app, tenant) as client:
        answers = [await client.get("/projects") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert "ratelimit-limit" not in answers[0].headers


def test_every_counted_operation_documents_429(app: FastAPI) -> None:
    document = app.openapi()
    operations = [(path, spec) for path, methods in document["paths"].items() for spec in methods.values()]
    for path, spec in operations:
        assert ("429" in spec["responses"]) == (path not in EXEMPT_PATHS), path
        if path not in EXEMPT_PATHS:
            described = spec["responses"]["429"]
            assert {"Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"} == set(
                described["headers"]
            )
            body = "OpenAIErrorOut" if path.startswith("/v1/") else "ErrorOut"
            assert described["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{body}"}
    assert len(operations) > 35
