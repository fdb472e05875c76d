"""Failures that are nobody's request: one body, the right status, and an id to find them by."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from backend.kit.config import Settings
from backend.main import create_app
from tests.conftest import Tenant

Opener = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def opened(settings: Settings, tenant: Tenant) -> Opener:
    """A client with a token, of a second application whose settings differ."""

    @asynccontextmanager
    async def open_app(prepare: Callable[[FastAPI], None] = lambda _: None, **update: Any) -> AsyncIterator[Any]:
        app = create_app(settings.model_copy(update=update))
        prepare(app)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            headers = {"Authorization": tenant.client.headers["Authorization"]}
            async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
                yield client

    return open_app


async def test_an_unexpected_error_has_the_id_that_its_sentence_names(opened: Opener) -> None:
    def prepare(app: FastAPI) -> None:
        @app.get("/broken")
        async def broken() -> None:
            raise RuntimeError("a secret of the inside")

    async with opened(prepare) as client:
        answer = await client.get("/broken", headers={"X-Request-ID": "caller-chosen-id"})
    assert (answer.status_code, answer.json()["error_code"]) == (500, "INTERNAL_ERROR")
    assert answer.headers["x-request-id"] == "caller-chosen-id"
    assert "X-Request-ID" in answer.json()["detail"]
    assert "secret" not in answer.text


async def test_without_a_database(opened: Opener) -> None:
    async with opened(database_url="postgresql+asyncpg://nobody:x@127.0.0.1:9/none") as client:
        for path in ("/projects", "/api/users/me", "/hardware/check"):
            answer = await client.get(path)
            assert answer.status_code == 503, answer.text
            assert set(answer.json()) == {"detail", "error_code", "context"}
            assert "Try again" in answer.json()["detail"]
        health = await client.get("/health")
    assert (health.status_code, health.json()["db"], health.json()["redis"]) == (503, "disconnected", "connected")


async def test_without_redis(opened: Opener) -> None:
    async with opened(redis_url="redis://127.0.0.1:9/0") as client:
        project = await client.post("/projects", json={"name": "No Redis needed"})
        assert project.status_code == 201
        await client.post(
            f"/projects/{project.json()['id']}/files/upload", files=[("files", ("a.txt", b"Words of a text."))]
        )
        # The row is the truth; the sweeper sends the message when the broker is back.
        queued = await client.post(f"/projects/{project.json()['id']}/chunks/generate")
        assert (queued.status_code, queued.json()["status"]) == (202, "queued")
        health = await client.get("/health")
    assert (health.status_code, health.json()["db"], health.json()["redis"]) == (503, "connected", "disconnected")
