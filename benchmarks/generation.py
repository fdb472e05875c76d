"""Dataset generation by the real job against a server of fixed latency, compared with the ideal."""

import os
import secrets
import sys
import tempfile
import time
from typing import Any

from benchmarks.measure import Row, free_port, median, server
from benchmarks.peers.fixed_latency import LATENCY_SECONDS

CHUNKS, CONCURRENCY, ROUNDS = 160, 8, 3
TARGET = 1.1
_SENTENCE = (
    "The Ferrule {n} lamp was first sold in Osterby in {year}, and its shade is made of {n} pieces of blue glass."
)


def run() -> list[Row]:
    from backend.embedded.servers import temporary_servers
    from backend.kit import migrations

    with temporary_servers() as servers, tempfile.TemporaryDirectory() as folder:
        port = free_port()
        migrations.upgrade(servers.database_url)
        os.environ.update(
            DATABASE_URL=servers.database_url,
            REDIS_URL=servers.redis_url,
            SECRET_KEY=secrets.token_urlsafe(48),
            DATA_DIR=folder,
            LLM_BASE_URL=f"http://127.0.0.1:{port}/v1",
            LLM_MODEL="fixed-latency",
            LLM_STRATEGY="free",
            LLM_MAX_CONCURRENCY=str(CONCURRENCY),
            LOG_LEVEL="WARNING",
        )
        command = [sys.executable, "-m", "benchmarks.peers.fixed_latency", str(port)]
        with server(command, f"http://127.0.0.1:{port}/health", {}):
            seconds = _rounds()
    ideal = LATENCY_SECONDS * CHUNKS / CONCURRENCY
    name = f"{CHUNKS} chunks, {CONCURRENCY} at a time, {LATENCY_SECONDS * 1000:.0f} ms each"
    return [Row(name, median(seconds), ideal, "s", TARGET, "most")]


def _rounds() -> list[float]:
    from celery_app import runtime
    from celery_app.app import app

    app.loader.import_default_modules()
    current = runtime.get()
    current.run(_warm_up(current))
    try:
        return [_generate(current, app) for _ in range(ROUNDS)]
    finally:
        runtime.close()


async def _warm_up(current: Any) -> None:
    """What a worker pays once in its life, imports above all, is not part of a run."""
    import openai

    async with openai.AsyncOpenAI(api_key="none", base_url=current.settings.llm_base_url) as client:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Text: nothing"}])


def _generate(current: Any, app: Any) -> float:
    """One generation job over a new project; seconds from claim to end."""
    job_id = current.run(_prepare(current))
    started = time.monotonic()
    app.tasks["dataset_generate"].run(job_id)
    seconds = time.monotonic() - started
    current.run(_check(current, job_id))
    return seconds


async def _prepare(current: Any) -> int:
    from backend.contents.models import Chunk, Content
    from backend.datasets import service
    from backend.kit.owner import Owner
    from backend.projects import service as projects
    from backend.users.models import User

    async with current.db.transaction() as session:
        user = User(email=f"{secrets.token_hex(8)}@example.com", password_hash="!", name="Bench")
        session.add(user)
        await session.flush()
        owner = Owner(user.id, user.public_id)
        project = await projects.create(session, owner, name="Bench", description=None, task_type="qa", config={})
        content = Content(
            project_id=project.id,
            kind="raw_doc",
            type="text",
            name="lamps.txt",
            mime_type="text/plain",
            size_bytes=1,
            sha256="0" * 64,
            character_count=1,
            file_key="none",
        )
        session.add(content)
        await session.flush()
        for number in range(CHUNKS):
            text = " ".join(_SENTENCE.format(n=number * 10 + part, year=1900 + number) for part in range(4))
            session.add(
                Chunk(
                    project_id=project.id,
                    content_id=content.id,
                    chunk_index=number,
                    text=text,
                    token_count=100,
                    meta={"headings": [f"Lamp {number}"]},
                )
            )
        job = await service.start_generation(
            session, current.broker, current.settings, project, target=CHUNKS, examples_per_chunk=None, model=None
        )
        return int(job.id)


async def _check(current: Any, job_id: int) -> None:
    """A run that did less than its work is no measurement."""
    from backend.jobs.models import Job

    async with current.db.transaction() as session:
        job = await session.get_one(Job, job_id)
    assert job.state == "success", (job.error_code, job.error_message)
    assert job.result is not None and job.result["valid"] >= CHUNKS * 0.9, job.result
