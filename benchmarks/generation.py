"""Dataset generation by the real job against a server of fixed latency: its time over the ideal, and its memory."""

import json
import os
import random
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.measure import Row, free_port, server
from benchmarks.peers.fixed_latency import LATENCY_SECONDS

FEW, MANY, CONCURRENCY = 100, 10_000, 16
MOST_TIMES_IDEAL, MOST_GROWTH_MB = 1.1, 50.0
_SENTENCES, _WORDS, _SECTION_CHUNKS = 6, 10, 5
_PATTERN = "The {} {} {} was made with {} {} and {} {} {} from the {} of {}."
_SYLLABLES = "ba ce dro fi gul han jo ker lim mos nar pel qui rus sta tov und vex wil zan".split()


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
            (_, few_mb), (seconds, many_mb) = _measured(FEW), _measured(MANY)
    name = f"{MANY:,} chunks, {CONCURRENCY} at a time, {LATENCY_SECONDS * 1000:.0f} ms each"
    growth = f"memory at {MANY:,} chunks over memory at {FEW} ({few_mb:.0f} MB)"
    return [
        Row(name, seconds, LATENCY_SECONDS * MANY / CONCURRENCY, "s", MOST_TIMES_IDEAL, "most"),
        Row(growth, many_mb - few_mb, MOST_GROWTH_MB, "MB", 1.0, "most"),
    ]


def _measured(chunks: int) -> tuple[float, float]:
    """Seconds from claim to end, and the most memory (MB) of a worker process that does nothing else."""
    from celery_app import runtime

    current = runtime.get()
    job_id = current.run(_prepare(current, chunks))
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.generation", str(job_id)], stdout=subprocess.PIPE, check=True, timeout=1800
    )
    current.run(_check(current, job_id, chunks))
    runtime.close()
    found = json.loads(child.stdout.splitlines()[-1])
    return float(found["seconds"]), float(found["peak_mb"])


def _work(job_id: int) -> None:
    """The child: one worker with one job."""
    from celery_app import runtime
    from celery_app.app import app

    app.loader.import_default_modules()
    current = runtime.get()
    current.run(_warm_up(current))
    try:
        started = time.monotonic()
        app.tasks["dataset_generate"].run(job_id)
        seconds = time.monotonic() - started
    finally:
        runtime.close()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb}))


async def _warm_up(current: Any) -> None:
    """What a worker pays once in its life, imports above all, is not part of a run."""
    import openai

    async with openai.AsyncOpenAI(api_key="none", base_url=current.settings.llm_base_url) as client:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "nothing"}])


async def _prepare(current: Any, chunks: int) -> int:
    """A project with one document of varied sentences, and the job that wants one example of each chunk."""
    from backend.contents.models import Chunk, Content
    from backend.datasets import service
    from backend.kit.owner import Owner
    from backend.projects import service as projects
    from backend.users.models import User

    words = random.Random(chunks)
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
            name="words.txt",
            mime_type="text/plain",
            size_bytes=1,
            sha256="0" * 64,
            character_count=1,
            language="en",
            file_key="none",
        )
        session.add(content)
        await session.flush()
        for number in range(chunks):
            session.add(
                Chunk(
                    project_id=project.id,
                    content_id=content.id,
                    chunk_index=number,
                    text=" ".join(_sentence(words) for _ in range(_SENTENCES)),
                    token_count=200,
                    meta={"headings": [f"Part {number // _SECTION_CHUNKS}"]},
                )
            )
        job = await service.start_generation(
            session, current.broker, current.settings, project, target=chunks, examples_per_chunk=None, model=None
        )
        return int(job.id)


def _sentence(words: random.Random) -> str:
    """English in its small words, so that its language is known, and like no other sentence in the rest."""
    return _PATTERN.format(*("".join(words.choices(_SYLLABLES, k=words.randint(3, 4))) for _ in range(_WORDS)))


async def _check(current: Any, job_id: int, chunks: int) -> None:
    """A run that did less than its work is no measurement."""
    from backend.jobs.models import Job

    async with current.db.transaction() as session:
        job = await session.get_one(Job, job_id)
    assert job.state == "success", (job.error_code, job.error_message)
    assert job.result is not None, "a job that ended well has a result"
    assert job.result["valid"] >= chunks * 0.95, job.result
    assert not job.result["shortfall"], job.result
    assert not job.result["leakage"]["leaked"], job.result


if __name__ == "__main__":
    _work(int(sys.argv[1]))
