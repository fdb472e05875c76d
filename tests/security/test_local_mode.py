"""AUTH_MODE=local: no login on this machine, and nobody else gets in."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn

from backend.kit.config import Settings
from backend.main import create_app
from tests.conftest import Tenant


@pytest.fixture(scope="module")
async def local_app(settings: Settings) -> AsyncIterator[Any]:
    app = create_app(settings.model_copy(update={"auth_mode": "local", "cors_origins": ["http://localhost:3000"]}))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture(scope="module")
async def local(local_app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=local_app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        yield client


async def test_no_login_is_needed(local: httpx.AsyncClient) -> None:
    created = await local.post("/projects", json={"name": "Local"})
    assert created.status_code == 201
    assert (await local.get(f"/projects/{created.json()['id']}")).status_code == 200
    assert (await local.get("/api/users/me")).json()["email"] == "owner@localhost"
    assert (await local.post("/api/auth/logout")).status_code == 200


async def test_a_token_still_means_its_user(local: httpx.AsyncClient, tenant: Tenant) -> None:
    project = await tenant.make_project()
    headers = {"Authorization": tenant.client.headers["Authorization"]}
    assert (await local.get("/api/users/me", headers=headers)).json()["email"] == tenant.email
    assert (await local.get(f"/projects/{project}", headers=headers)).status_code == 200
    assert (await local.get(f"/projects/{project}")).status_code == 404
    assert (await local.get("/projects", headers={"Authorization": "Bearer wrong"})).status_code == 401


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "[::1]"]
)
async def test_own_hosts(local: httpx.AsyncClient, host: str) -> None:
    assert (await local.get("/projects", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8000",
        "",
        "[::1",
        "::1",
        "0.0.0.0:8000",
        "192.168.1.5:8000",
        "localhost:8000@evil.example",
        "[::ffff:127.0.0.1.evil]:80",
        "127.0.0.1:8000, x",
    ],
)
async def test_foreign_hosts(local: httpx.AsyncClient, host: str) -> None:
    answer = await local.get("/projects", headers={"Host": host})
    assert (answer.status_code, answer.json()["error_code"]) == (403, "FORBIDDEN_ORIGIN")
    assert "AUTH_MODE=token" in answer.json()["detail"]


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "http://localhost:3000"])
async def test_own_origins(local: httpx.AsyncClient, origin: str) -> None:
    assert (await local.post("/projects", json={"name": "x"}, headers={"Origin": origin})).status_code == 201


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://127.0.0.1:9999",
        "http://localhost:8000",
        "http://[",
        "http://[::1",
        "",
        "file://",
        "http://127.0.0.1:8000.evil.example",
        "http://localhost:3000.evil.example",
        "http://127.0.0.1:8000@evil.example",
    ],
)
async def test_foreign_origins(local: httpx.AsyncClient, origin: str) -> None:
    for method, path in (("POST", "/projects"), ("GET", "/projects"), ("OPTIONS", "/projects")):
        answer = await local.request(method, path, headers={"Origin": origin})
        assert (answer.status_code, answer.json()["error_code"]) == (403, "FORBIDDEN_ORIGIN")


async def ask(app: Any, client: Any, server: Any) -> int:
    """One request from and to the given addresses, with a Host that looks local."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/projects",
        "raw_path": b"/projects",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8000")],
        "client": client,
        "server": server,
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


LOOPBACK = ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("client", "server", "status"),
    [
        (("127.0.0.1", 50000), LOOPBACK, 200),
        (("127.0.0.2", 50000), LOOPBACK, 200),
        (("::1", 50000), ("::1", 8000), 200),
        (("::ffff:127.0.0.1", 50000), ("::ffff:127.0.0.1", 8000), 200),
        (None, ("/run/finetuneflow.sock", None), 200),
        (("192.168.1.7", 50000), LOOPBACK, 403),
        (("192.168.1.7", 50000), ("192.168.1.5", 8000), 403),
        (("127.0.0.1", 50000), ("192.168.1.5", 8000), 403),
        (None, ("192.168.1.5", 8000), 403),
        (("fe80::1%eth0", 50000), ("fe80::2", 8000), 403),
        (("::ffff:10.0.0.1", 50000), ("::ffff:10.0.0.2", 8000), 403),
        (("client.example", 50000), LOOPBACK, 403),
    ],
)
async def test_only_this_machine(local_app: Any, client: Any, server: Any, status: int) -> None:
    assert await ask(local_app, client, server) == status


async def test_a_server_on_every_address_answers_on_loopback_only(local_app: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which address this machine has
        address = probe.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    config = uvicorn.Config(local_app, host="0.0.0.0", port=0, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/projects")).status_code == 200
            outside = await client.get(f"http://{address}:{port}/projects", headers={"Host": f"127.0.0.1:{port}"})
            assert (outside.status_code, outside.json()["error_code"]) == (403, "FORBIDDEN_ORIGIN")
    finally:
        server.should_exit = server.force_exit = True
        await task
