"""Real PostgreSQL and Valkey for all tests: started once, one migrated database per process, a new user per test."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url, select

from backend.embedded.servers import temporary_servers
from backend.jobs.models import Job
from backend.kit import migrations
from backend.kit.config import Settings, get_settings
from backend.kit.db import Database
from tests.llm_server import LLMServer
from tests.providers.hub_server import HubServer, running_hub

TEMPLATE = "template_of_tests"
_DATABASE_URL, _REDIS_URL = "TESTS_DATABASE_URL", "TESTS_REDIS_URL"


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    servers_context = temporary_servers()
    servers = servers_context.__enter__()
    config.add_cleanup(lambda: servers_context.__exit__(None, None, None))
    servers.postgres.create_database(TEMPLATE)
    migrations.upgrade(servers.postgres.url(TEMPLATE))
    os.environ[_DATABASE_URL] = servers.postgres.url("postgres")
    os.environ[_REDIS_URL] = servers.valkey.url()


async def clone_database(name: str) -> str:
    """A new database with all tables and no rows; returns its URL."""
    admin = Database(os.environ[_DATABASE_URL], pool_size=1)
    try:
        async with admin.engine.connect() as connection:
            autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE "{TEMPLATE}"')
    finally:
        await admin.close()
    return make_url(os.environ[_DATABASE_URL]).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def llm_server() -> Iterator[LLMServer]:
    """The language model server that the settings name."""
    server = LLMServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def outside_hub() -> Iterator[HubServer]:
    """The HuggingFace Hub that the settings name."""
    with running_hub() as server:
        yield server


@pytest.fixture(scope="session")
def settings(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, llm_server: LLMServer, outside_hub: HubServer
) -> Iterator[Settings]:
    """The process's settings, also in its environment, so that child processes see the same."""
    number = int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 0
    url = asyncio.run(clone_database(f"test_{worker_id}_{secrets.token_hex(4)}"))
    folder = tmp_path_factory.mktemp("data")
    environment = {
        "DATABASE_URL": url,
        "REDIS_URL": f"{os.environ[_REDIS_URL].rsplit('/', 1)[0]}/{number + 1}",
        "DATA_DIR": str(folder),
        "STORAGE_URL": (folder / "storage").as_uri(),
        "SECRET_KEY": secrets.token_urlsafe(48),
        "AUTH_MODE": "token",
        "RATE_LIMITS": "false",
        # Room for every test; what plans limit is tested with the small one.
        "PLANS": '{"Free": {}, "Small": {"max_projects": 2, "max_fine_tunings": 1}}',
        # Room for every test; what characters cost is tested with settings of its own.
        "FREE_CHARACTERS": "100000000",
        "LLM_BASE_URL": llm_server.url,
        "LLM_MODEL": "imitation-70b",
        "LLM_MAX_ATTEMPTS": "2",
        "HF_ENDPOINT": outside_hub.endpoint,
        "HF_TIMEOUT_SECONDS": "5",
        "TRAINING_DEVICE": "cpu",
        "TRAINING_THREADS": "1",
        "LOG_LEVEL": "WARNING",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        yield get_settings()
    get_settings.cache_clear()


@pytest.fixture(scope="session")
async def app(settings: Settings) -> AsyncIterator[Any]:
    """The real application, with its lifespan."""
    from backend.main import create_app

    application = create_app(settings)
    async with application.router.lifespan_context(application):
        yield application


@pytest.fixture(scope="session")
async def anonymous(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a token."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
async def db(settings: Settings, app: Any) -> Database:
    found: Database = app.state.services.db
    return found


@dataclass
class Tenant:
    """A registered user with a client that carries its token."""

    client: httpx.AsyncClient
    email: str
    password: str
    login: dict[str, Any] = field(default_factory=dict)

    async def make_project(self, **fields: Any) -> str:
        answer = await self.client.post("/projects", json={"name": "Project", **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def upload(self, project: str, filename: str, content: bytes, kind: str = "raw_doc") -> httpx.Response:
        return await self.client.post(
            f"/projects/{project}/files/upload", files=[("files", (filename, content))], data={"kind": kind}
        )


async def stored_keys(app: Any, prefix: str) -> list[str]:
    """The keys of all stored files below a prefix."""
    return [blob.key for blob in await app.state.services.storage.list_under(prefix)]


@asynccontextmanager
async def registered(app: Any, anonymous: httpx.AsyncClient) -> AsyncIterator[Tenant]:
    """Registers and logs in another user."""
    email, password = f"{secrets.token_hex(8)}@example.com", "a long password"
    body = {"email": email, "password": password, "name": "Somebody"}
    answer = await anonymous.post("/api/auth/register", json=body)
    assert answer.status_code == 201, answer.text
    login = (await anonymous.post("/api/auth/login", json={"username": email, "password": password})).json()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app, raise_app_exceptions=False),
        base_url="http://testserver",
        headers={"Authorization": f"Bearer {login['access_token']}"},
        timeout=60,
    ) as client:
        yield Tenant(client, email, password, login)


@pytest.fixture
async def make_tenant(app: Any, anonymous: httpx.AsyncClient) -> AsyncIterator[Callable[[], Awaitable[Tenant]]]:
    """Registers and logs in another user at each call."""
    async with AsyncExitStack() as stack:
        yield lambda: stack.enter_async_context(registered(app, anonymous))


@pytest.fixture
async def tenant(make_tenant: Callable[[], Awaitable[Tenant]]) -> Tenant:
    return await make_tenant()


@pytest.fixture(scope="session")
def job_thread(settings: Settings) -> Iterator[ThreadPoolExecutor]:
    """The thread in which jobs run, as a worker process would run them: with the worker's own loop and connections."""
    from celery_app import runtime

    with ThreadPoolExecutor(1, thread_name_prefix="jobs") as thread:
        yield thread
        thread.submit(runtime.close).result()


@pytest.fixture(scope="session")
def run_jobs(
    settings: Settings, db: Database, job_thread: ThreadPoolExecutor
) -> Callable[[str], Awaitable[dict[str, Any]]]:
    """Runs one job, by its UUID, with the worker's own code; returns its row as a dict."""
    from celery_app.app import app as celery

    async def run(public_id: str) -> dict[str, Any]:
        async with db.transaction() as session:
            job = (await session.scalars(select(Job).where(Job.public_id == public_id))).one()
        celery.loader.import_default_modules()
        task = celery.tasks[job.kind]
        await asyncio.get_running_loop().run_in_executor(job_thread, task.run, job.id)
        async with db.transaction() as session:
            row = (await session.scalars(select(Job).where(Job.public_id == public_id))).one()
            return {column.name: getattr(row, column.name) for column in Job.__table__.columns}

    return run


@pytest.fixture
def examples_folder() -> Path:
    return Path(__file__).parent.parent / "examples"
