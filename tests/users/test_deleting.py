"""The end of an account: nothing of it is left in any table, file or stream, but what was used, without a name."""

import asyncio
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import func, select, text, update

from backend.api.platform import account
from backend.billing.models import LedgerEntry
from backend.datasets.models import Dataset
from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.main import create_app
from backend.projects.models import Project
from backend.training.models import FineTuning
from backend.users.models import ProviderKey, User
from tests.conftest import Tenant, registered
from tests.users.conftest import Mailbox, text_of
from tests.users.populating import populate

URL = "/api/users/me"
RunJob = Callable[[str], Awaitable[dict[str, Any]]]


async def delete(tenant: Tenant, password: str | None = None) -> httpx.Response:
    return await tenant.client.request("DELETE", URL, json={"password": password or tenant.password})


async def found_in_tables(db: Database, canary: str) -> dict[str, int]:
    """How many rows of each table hold the canary, in any column, as text or as bytes."""
    async with db.transaction() as session:
        tables = (await session.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))).all()
        assert len(tables) > 15
        counts = {}
        for table in tables:
            query = text(f'SELECT count(*) FROM "{table}" t WHERE t::text ILIKE :text OR t::text ILIKE :hex')
            values = {"text": f"%{canary}%", "hex": f"%{canary.encode().hex()}%"}
            counts[table] = int(await session.scalar(query, values) or 0)
    return {table: count for table, count in counts.items() if count}


def found_in_files(folder: Path, canary: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if canary in path.name or canary.encode() in path.read_bytes()]


async def found_in_redis(redis: Redis, canary: str) -> list[str]:
    found = []
    async for key in redis.scan_iter():
        readers: dict[str, Callable[[], Any]] = {
            "string": lambda key=key: redis.get(key),
            "list": lambda key=key: redis.lrange(key, 0, -1),
            "hash": lambda key=key: redis.hgetall(key),
            "set": lambda key=key: redis.smembers(key),
            "zset": lambda key=key: redis.zrange(key, 0, -1),
            "stream": lambda key=key: redis.xrange(key),
        }
        kind = await redis.type(key)
        if kind != "none" and canary in f"{key} {await readers[kind]()}":
            found.append(str(key))
    return found


async def use_everything(tenant: Tenant, canary: str, run_jobs: RunJob) -> list[str]:
    """Writes the canary wherever a user can write a text; returns the jobs."""
    client = tenant.client
    await client.put(URL, json={"name": canary})
    assert (await client.post(f"{URL}/tokens", json={"name": canary})).status_code == 201
    key = {"provider": "openai", "key": f"sk-{canary}{canary}"}
    assert (await client.post(f"{URL}/api-keys", json=key)).status_code in (201, 400)
    headers = {"Idempotency-Key": canary}
    body = {"name": canary, "description": canary, "config": {"train_eval_split": 0.8, "own": canary}}
    answer = await client.post("/projects", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    project = answer.json()["id"]
    document = "\n\n".join(f"The {canary} lamp number {n} has {n} feet and a shade." for n in range(60))
    assert (await tenant.upload(project, f"{canary}.md", document.encode())).status_code == 201
    rows = b'{"instruction": "What is it?", "output": "It is %s."}\n' % canary.encode()
    assert (await tenant.upload(project, f"{canary}.jsonl", rows, kind="dataset_upload")).status_code == 201
    jobs = []
    for path, sent in {
        "chunks/generate": {"chunk_size_tokens": 256, "chunk_overlap_tokens": 20},
        "dataset/generate": {"num_examples_target": 6, "examples_per_chunk": 3, "ollama_model": canary},
    }.items():
        answer = await client.post(f"/projects/{project}/{path}", json=sent)
        assert answer.status_code == 202, answer.text
        jobs.append(answer.json()["job_id"])
        assert (await run_jobs(jobs[-1]))["state"] == "success"
    examples = (await client.get(f"/projects/{project}/dataset/examples")).json()["items"]
    path = f"/projects/{project}/dataset/examples/{examples[0]['id']}"
    assert (await client.patch(path, json={"data": {"output": f"Corrected: {canary}."}})).status_code == 200
    assert (await client.post(f"/projects/{project}/dataset/versions", json={"note": canary})).status_code == 201
    assert (await client.post("/api/projects", json={"name": canary, "description": canary})).status_code == 201
    return jobs


async def test_a_canary_in_every_text_is_gone(
    app: Any, anonymous: httpx.AsyncClient, settings: Settings, db: Database, run_jobs: RunJob, mailbox: Mailbox
) -> None:
    canary = secrets.token_hex(8)
    folder, redis = Path(settings.data_dir), app.state.services.redis
    async with registered(app, anonymous) as tenant, registered(app, anonymous) as other:
        kept = await other.make_project(name="Not mine")
        headers = {"User-Agent": canary}
        login = {"username": tenant.email, "password": tenant.password}
        assert (await anonymous.post("/api/auth/login", json=login, headers=headers)).status_code == 200
        jobs = await use_everything(tenant, canary, run_jobs)
        user = tenant.login["user"]["id"]
        async with db.transaction() as session:
            await session.execute(update(User).where(User.id == user).values(email=f"{canary}@example.com"))
            await populate(session, user, canary)
            ledger = select(func.count()).where(LedgerEntry.user_id == user)
            before = await session.scalar(ledger)
        await app.state.services.background.idle()
        # Else nothing would be proved below.
        assert len(await found_in_tables(db, canary)) >= 15
        assert len(found_in_files(folder, canary)) >= 3
        streams = [f"job:{job}:events" for job in jobs]
        assert await redis.exists(*streams) == len(streams)
        await app.state.services.events.publish(UUID(jobs[0]), "log", {"message": canary})
        assert await found_in_redis(redis, canary)

        assert (await delete(tenant)).status_code == 204
        # No other account of this database may be searched: the canary is this one's alone.
        assert await found_in_tables(db, canary) == {}
        assert found_in_files(folder, canary) == []
        assert await found_in_redis(redis, canary) == []
        assert await redis.exists(*streams) == 0
        async with db.transaction() as session:
            assert before is not None
            assert before > 1
            assert await session.scalar(ledger) == before
        assert (await tenant.client.get(URL)).status_code == 401
        assert (await other.client.get(f"/projects/{kept}")).status_code == 200
        (mail,) = await mailbox.to(f"{canary}@example.com")
        assert "supprimé" in mail["Subject"]
        assert "supprimé avec ses projets" in text_of(mail)


async def test_a_wrong_password_deletes_nothing(tenant: Tenant) -> None:
    project = await tenant.make_project()
    refused = await delete(tenant, "wrong password")
    assert (refused.status_code, refused.json()["error_code"]) == (400, "WRONG_PASSWORD")
    assert (await tenant.client.request("DELETE", URL)).status_code == 422
    assert (await tenant.client.get(f"/projects/{project}")).status_code == 200


async def test_every_way_in_is_closed_and_the_address_is_free(tenant: Tenant, anonymous: httpx.AsyncClient) -> None:
    token = (await tenant.client.post(f"{URL}/tokens", json={"name": "x"})).json()["token"]
    answers = await asyncio.gather(*[delete(tenant) for _ in range(3)])
    assert sorted(answer.status_code for answer in answers) in ([204, 401, 401], [204, 400, 401], [204, 400, 400])
    for bearer in (token, tenant.login["access_token"]):
        assert (await anonymous.get(URL, headers={"Authorization": f"Bearer {bearer}"})).status_code == 401
    refresh = {"refresh_token": tenant.login["refresh_token"]}
    assert (await anonymous.post("/api/auth/refresh-token", json=refresh)).status_code == 401
    login = {"username": tenant.email, "password": tenant.password}
    assert (await anonymous.post("/api/auth/login", json=login)).json()["error_code"] == "BAD_CREDENTIALS"
    again = {"email": tenant.email, "password": "a long password", "name": "Again"}
    assert (await anonymous.post("/api/auth/register", json=again)).status_code == 201


async def test_projects_made_at_the_same_time_are_gone_too(tenant: Tenant, db: Database) -> None:
    made = [tenant.client.post("/projects", json={"name": "Late"}) for _ in range(5)]
    answers = await asyncio.gather(*made[:3], delete(tenant), *made[3:])
    assert answers[3].status_code == 204
    assert {answer.status_code for answer in answers} <= {201, 204, 401, 409}
    async with db.transaction() as session:
        row = text("SELECT count(*) FROM projects WHERE user_id = :user")
        assert await session.scalar(row, {"user": tenant.login["user"]["id"]}) == 0


async def test_what_a_worker_still_says_about_a_job_is_deleted_late(
    tenant: Tenant, app: Any, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "_LATE_SECONDS", 0.3)
    project = await tenant.make_project()
    await tenant.upload(project, "x.txt", b"A sentence of some words stands here.")
    job = (await tenant.client.post(f"/projects/{project}/chunks/generate")).json()["job_id"]
    async with db.transaction() as session:
        await session.execute(
            update(Job)
            .where(Job.public_id == UUID(job))
            .values(state="running", fence=1, lease_until=func.now() + text("interval '1 minute'"))
        )
    services = app.state.services
    assert (await delete(tenant)).status_code == 204
    await services.events.publish(UUID(job), "progress", {"message": "still here"})
    assert await services.redis.exists(f"job:{job}:events") == 1
    await services.background.idle()
    assert await services.redis.exists(f"job:{job}:events") == 0


class Outside(ThreadingHTTPServer):
    """A provider that takes note of each request, and answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.status = 200


class _Handler(BaseHTTPRequestHandler):
    server: Outside

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = b'{"id": "ftjob-1", "object": "fine_tuning.job", "status": "cancelled", "deleted": true}'
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def outside(app: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    server = Outside()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    monkeypatch.setattr(app.state.services.settings, "openai_base_url", url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [200, 500])
async def test_jobs_at_a_provider_are_cancelled_and_their_files_deleted(
    tenant: Tenant, app: Any, db: Database, outside: Outside, status: int
) -> None:
    services, user = app.state.services, tenant.login["user"]["id"]
    async with db.transaction() as session:
        sealed = services.sealer.seal("sk-0123456789abcdef", bound_to=f"user:{user}:provider:openai")
        values = {"key_id": sealed.key_id, "ciphertext": sealed.ciphertext, "masked": "sk-...cdef"}
        project = Project(user_id=user, name="x", config={})
        session.add_all([ProviderKey(user_id=user, provider="openai", **values), project])
        await session.flush()
        dataset = Dataset(project_id=project.id, name="x")
        session.add(dataset)
        await session.flush()
        runs = [
            FineTuning(
                project_id=project.id,
                dataset_id=dataset.id,
                name=state,
                provider="openai",
                method="supervised",
                model="m",
                status=state,
                external_id=f"ftjob-{state}",
                provider_state={"job": {"files": [f"file-{state}"]}},
            )
            for state in ("training", "completed")
        ]
        session.add_all(runs)
    await services.events.publish(runs[1].public_id, "log", {"message": "words"})
    outside.status = status
    assert (await delete(tenant)).status_code == 204
    assert "POST /v1/fine_tuning/jobs/ftjob-training/cancel" in outside.asked
    assert ("DELETE /v1/files/file-training" in outside.asked) == (status == 200)
    assert not any("completed" in request for request in outside.asked)
    assert await services.redis.exists(f"job:{runs[1].public_id}:events") == 0


async def test_the_local_owner_cannot_be_deleted_nor_mailed(settings: Settings) -> None:
    local = create_app(settings.model_copy(update={"auth_mode": "local"}))
    async with local.router.lifespan_context(local):
        transport = httpx.ASGITransport(app=local, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            for method, path, body in [
                ("DELETE", URL, {"password": "!"}),
                ("POST", f"{URL}/change-password", {"current_password": "!", "new_password": "a long password"}),
                ("POST", "/api/auth/resend-verification", None),
            ]:
                answer = await client.request(method, path, json=body)
                assert (answer.status_code, answer.json()["error_code"]) == (403, "LOCAL_ACCOUNT"), path
            assert (await client.get(URL)).status_code == 200
            assert (await client.get(f"{URL}/sessions")).json() == []
            assert (await client.get(f"{URL}/subscription")).json()["max_projects"] is None
