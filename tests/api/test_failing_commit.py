"""A commit that fails is a 500: nothing is promised that the database did not take, and no message leaves."""

import secrets
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import text

from backend.kit import redis as kit_redis
from backend.kit.broker import QUEUES
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.main import create_app
from tests.conftest import clone_database

# Deferred: the INSERT succeeds, and only the commit fails.
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused at commit'; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON {} DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.fixture
async def own(settings: Settings) -> Settings:
    """A database of its own, to be spoilt, and a Redis in which nothing else is."""
    server, _, number = settings.redis_url.rpartition("/")
    url = await clone_database(f"commits_{secrets.token_hex(4)}")
    return settings.model_copy(update={"database_url": url, "redis_url": f"{server}/{int(number) + 7}"})


@pytest.fixture
async def client(own: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(own)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=60) as client:
            account = {"email": "somebody@example.com", "password": "a long password", "name": "Somebody"}
            assert (await client.post("/api/auth/register", json=account)).status_code == 201
            login = await client.post("/api/auth/login", json={"username": account["email"], **account})
            client.headers["Authorization"] = f"Bearer {login.json()['access_token']}"
            yield client


async def refuse_commits(own: Settings, table: str) -> None:
    db = Database(own.database_url, pool_size=1)
    function, trigger = REFUSE.format(table).split("$$;")
    async with db.transaction() as session:
        await session.execute(text(f"{function}$$"))
        await session.execute(text(trigger))
    await db.close()


async def test_a_row_that_cannot_be_committed_is_not_answered_with_success(
    client: httpx.AsyncClient, own: Settings
) -> None:
    assert (await client.post("/projects", json={"name": "Before"})).status_code == 201
    await refuse_commits(own, "projects")
    answer = await client.post("/projects", json={"name": "After"})
    assert answer.status_code == 500
    assert answer.json()["error_code"] == "INTERNAL_ERROR"
    assert "refused at commit" not in answer.text
    listed = (await client.get("/projects")).json()
    assert [project["name"] for project in listed["items"]] == ["Before"]


async def test_a_job_that_cannot_be_committed_sends_no_message(client: httpx.AsyncClient, own: Settings) -> None:
    project = (await client.post("/projects", json={"name": "Project"})).json()["id"]
    files = [("files", ("a.txt", b"Zorblax pumps deliver nine litres. " * 40))]
    uploaded = await client.post(f"/projects/{project}/files/upload", files=files, data={"kind": "raw_doc"})
    assert uploaded.status_code in (200, 201), uploaded.text
    redis = kit_redis.connect(own.redis_url)
    await redis.flushdb()
    await refuse_commits(own, "jobs")
    answer = await client.post(f"/projects/{project}/chunks/generate", json={})
    assert answer.status_code == 500
    assert (await client.get(f"/projects/{project}/jobs")).json()["jobs"] == []
    assert [await redis.llen(queue) for queue in QUEUES] == [0, 0, 0, 0]
    await redis.aclose()
