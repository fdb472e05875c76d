"""The chunking job: rows that stay, rows that move, a kill in the middle, a file deleted meanwhile, bounded memory."""

import asyncio
import json
import os
import signal
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update

from backend.contents import chunk_job
from backend.contents.blocks import Block, ExtractedDocument
from backend.contents.models import Chunk, Content
from backend.contents.token_counting import ApproximateTokenCounter, TokenCounter
from backend.jobs.models import Job
from backend.jobs.running import JobRun
from backend.jobs.states import JobState
from backend.kit.config import Settings
from backend.kit.db import Database
from celery_app.job_task import run_job
from celery_app.runtime import Runtime
from tests.conftest import Tenant

SIZES = {"chunk_size_tokens": 64, "chunk_overlap_tokens": 8}


class Project:
    """One project with one document whose blocks may be replaced, as a better extraction would."""

    def __init__(self, app: Any, db: Database, tenant: Tenant, thread: ThreadPoolExecutor, folder: Path) -> None:
        self.app, self.db, self.tenant, self.thread, self.folder = app, db, tenant, thread, folder
        self.id = self.file = ""

    async def create(self, text: str) -> None:
        self.id = await self.tenant.make_project()
        answer = await self.tenant.upload(self.id, "text.md", text.encode())
        assert answer.status_code == 201, answer.text
        self.file = answer.json()["files"][0]["id"]

    async def content(self) -> Content:
        async with self.db.transaction() as session:
            return (await session.scalars(select(Content).where(Content.public_id == self.file))).one()

    async def replace(self, blocks: list[Block]) -> None:
        document = ExtractedDocument(None, sum(len(block.text) for block in blocks), blocks)
        path = self.folder / "text.jsonl"
        path.write_bytes(document.to_bytes())
        key = (await self.content()).text_key
        assert key is not None
        await self.app.state.services.storage.put_file(key, path)

    async def enqueue(self, **sizes: int) -> Job:
        answer = await self.tenant.client.post(f"/projects/{self.id}/chunks/generate", json=sizes or SIZES)
        assert answer.status_code == 202, answer.text
        async with self.db.transaction() as session:
            return (await session.scalars(select(Job).where(Job.public_id == answer.json()["job_id"]))).one()

    async def cut(self, counter: TokenCounter | None = None, **sizes: int) -> Job:
        return await self.perform(await self.enqueue(**sizes), counter)

    async def perform(self, job: Job, counter: TokenCounter | None = None) -> Job:
        async def work(run: JobRun, current: Runtime) -> dict[str, Any]:
            return await chunk_job.run(run, current.storage, counter or ApproximateTokenCounter(), self.folder / "own")

        await asyncio.get_running_loop().run_in_executor(self.thread, run_job, job.id, work)
        return await self.row(job)

    async def row(self, job: Job) -> Job:
        async with self.db.transaction() as session:
            return (await session.scalars(select(Job).where(Job.id == job.id))).one()

    async def chunks(self) -> list[Chunk]:
        async with self.db.transaction() as session:
            mine = select(Content.id).where(Content.public_id == self.file)
            rows = select(Chunk).where(Chunk.content_id.in_(mine)).order_by(Chunk.chunk_index)
            found = list((await session.scalars(rows)).all())
        assert [row.chunk_index for row in found] == list(range(len(found)))
        return found


@pytest.fixture
async def project(app: Any, db: Database, tenant: Tenant, job_thread: ThreadPoolExecutor, tmp_path: Path) -> Project:
    made = Project(app, db, tenant, job_thread, tmp_path)
    await made.create("# Title\n\nA short text that is replaced.\n")
    return made


def paragraphs(count: int, start: int = 0) -> list[Block]:
    return [
        Block(
            "paragraph",
            " ".join(f"Part {number}.{index} tells{' so' * (number * 7 % 11)}." for index in range(number % 4 + 1)),
        )
        for number in range(start, start + count)
    ]


async def test_the_same_document_leaves_its_rows_untouched(project: Project) -> None:
    await project.replace(paragraphs(60))
    first = await project.cut()
    before = await project.chunks()
    assert len(before) > 10
    assert first.result == {"files": 1, "chunks": len(before)}
    again = await project.cut()
    assert again.state == JobState.SUCCESS, again.error_message
    assert again.result == first.result
    after = await project.chunks()
    assert [(row.id, row.updated_at) for row in after] == [(row.id, row.updated_at) for row in before]


@pytest.mark.parametrize("place", [0, 30, 60])
async def test_an_inserted_paragraph_moves_the_rows_behind_it(project: Project, place: int) -> None:
    old = paragraphs(60)
    await project.replace(old)
    await project.cut()
    before = {row.text: row for row in await project.chunks()}
    await project.replace([*old[:place], *paragraphs(3, 1_000), *old[place:]])
    await project.cut()
    after = await project.chunks()
    kept = [row for row in after if row.text in before]
    assert len(kept) >= len(before) - 6
    assert all(row.id == before[row.text].id and row.public_id == before[row.text].public_id for row in kept)
    if place == 0:
        assert all(row.chunk_index > before[row.text].chunk_index for row in kept)
    # And back: rows move towards the start, none in another's place.
    await project.replace(old)
    await project.cut()
    assert [row.text for row in await project.chunks()] == list(before)


async def test_chunks_with_the_same_text_each_have_a_row(project: Project) -> None:
    same = [Block("heading", "Notes", 1), *paragraphs(6)]
    await project.replace(same * 4)
    await project.cut()
    before = await project.chunks()
    assert len({row.text for row in before}) < len(before)
    await project.replace(same * 3)
    await project.cut()
    after = await project.chunks()
    # The end of the document may be packed in another way.
    assert len({row.id for row in after} - {row.id for row in before}) <= 1
    assert len(after) < len(before)


async def test_what_stands_beside_the_text_is_brought_up_to_date(project: Project) -> None:
    blocks = [
        Block("paragraph", "The first page says this.", page=1),
        Block("paragraph", "The second says that.", page=2),
    ]
    await project.replace(blocks)
    await project.cut()
    (before,) = await project.chunks()
    assert before.meta == {"page_start": 1, "page_end": 2, "headings": [], "page_starts": [[0, 1], [27, 2]]}
    await project.replace([Block(block.kind, block.text, block.level, 7) for block in blocks])
    await project.cut()
    (after,) = await project.chunks()
    assert (after.id, after.meta) == (before.id, {"page_start": 7, "page_end": 7, "headings": []})


async def test_no_text_takes_all_rows_away(project: Project) -> None:
    await project.cut()
    assert await project.chunks()
    await project.replace([])
    job = await project.cut()
    assert job.result == {"files": 1, "chunks": 0}
    assert await project.chunks() == []


async def test_a_file_deleted_meanwhile_has_no_chunks(project: Project) -> None:
    class Deleting(ApproximateTokenCounter):
        """Somebody deletes the file while its text is being cut."""

        def count_many(self, texts: list[str]) -> list[int]:
            asyncio.run_coroutine_threadsafe(project_deleted(), loop).result(30)
            return super().count_many(texts)

    async def project_deleted() -> None:
        async with project.db.transaction() as session:
            await session.execute(delete(Content).where(Content.public_id == project.file))

    loop = asyncio.get_running_loop()
    content = await project.content()
    job = await project.cut(Deleting())
    assert job.state == JobState.SUCCESS, job.error_message
    async with project.db.transaction() as session:
        assert await session.scalar(select(func.count()).where(Chunk.content_id == content.id)) == 0
    assert list((project.folder / "own").iterdir()) == []


async def test_a_killed_job_leaves_nothing_and_gives_the_same_rows_again(project: Project, settings: Settings) -> None:
    await project.replace(paragraphs(40))
    await project.cut()
    expected = [row.text for row in await project.chunks()]
    ids = [row.id for row in await project.chunks()]
    await project.replace(paragraphs(40_000))
    job = await project.enqueue()
    command = (
        "from celery_app.app import app; app.loader.import_default_modules(); "
        f"app.tasks['chunk_generate'].run({job.id})"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", command)
    try:
        own = settings.data_dir / "chunking"
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in own.glob(f"{job.public_id}-*/chunks.jsonl")):
            assert time.monotonic() < deadline
            assert child.returncode is None
            await asyncio.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()
    assert [row.id for row in await project.chunks()] == ids
    (left,) = own.glob(f"{job.public_id}-*")
    async with project.db.transaction() as session:
        # What the sweeper does once the lease has run out.
        await session.execute(update(Job).where(Job.id == job.id).values(state=JobState.QUEUED, lease_until=None))
    await project.replace(paragraphs(40))
    ended = await run_as_the_worker_does(project, job)
    assert ended.state == JobState.SUCCESS, ended.error_message
    assert [row.text for row in await project.chunks()] == expected
    assert [row.id for row in await project.chunks()] == ids
    assert not left.exists()


async def run_as_the_worker_does(project: Project, job: Job) -> Job:
    from celery_app.app import app as celery

    celery.loader.import_default_modules()
    await asyncio.get_running_loop().run_in_executor(project.thread, celery.tasks[job.kind].run, job.id)
    return await project.row(job)


async def test_what_others_left_goes_after_a_day(project: Project) -> None:
    own = project.folder / "own"
    for name, age in (("fresh", 60), ("old", 90_000)):
        (own / name).mkdir(parents=True)
        os.utime(own / name, (time.time() - age,) * 2)
    await project.cut()
    assert [path.name for path in own.iterdir()] == ["fresh"]


async def test_a_cancel_ends_the_cutting(project: Project) -> None:
    class Slow(ApproximateTokenCounter):
        calls = 0

        def count_many(self, texts: list[str]) -> list[int]:
            Slow.calls += 1
            time.sleep(0.02)
            return super().count_many(texts)

    await project.replace(paragraphs(20_000))
    job = await project.enqueue()
    running = asyncio.ensure_future(project.perform(job, Slow()))
    while not Slow.calls:
        await asyncio.sleep(0.01)
    answer = await project.tenant.client.post(f"/jobs/{job.public_id}/cancel")
    assert answer.status_code in {200, 202}, answer.text
    assert (await asyncio.wait_for(running, 30)).state == JobState.CANCELLED
    await asyncio.sleep(0.2)
    calls = Slow.calls
    await asyncio.sleep(0.3)
    assert Slow.calls == calls, "the thread has ended as well"
    assert await project.chunks() == []


def pages(count: int) -> Iterator[Block]:
    """Pages of some five kilobytes, no two alike."""
    for page in range(1, count + 1):
        yield Block("heading", f"Page {page}", 2, page)
        for part in range(12):
            text = " ".join(f"Entry {page}-{part}-{index} of the register tells what it holds." for index in range(8))
            yield Block("paragraph", text, page=page)


async def test_memory_does_not_grow_with_the_document(project: Project) -> None:
    """A thousand pages of six kilobytes against a hundred, first stored, then all moved by a page put before them."""

    async def peak(blocks: list[Block]) -> int:
        await project.replace(blocks)
        blocks.clear()
        tracemalloc.start()
        try:
            job = await project.cut(chunk_size_tokens=512, chunk_overlap_tokens=50)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert job.state == JobState.SUCCESS, job.error_message

    await peak(list(pages(10)))
    small = await peak(list(pages(100)))
    large = await peak(list(pages(1_000)))
    moved = await peak([*paragraphs(30), *pages(1_000)])
    async with project.db.transaction() as session:
        rows, size = (
            await session.execute(
                select(func.count(), func.sum(func.length(Chunk.text)))
                .join(Content, Content.id == Chunk.content_id)
                .where(Content.public_id == project.file)
            )
        ).one()
    assert rows > 2_000
    assert size > 5_000_000
    # Of a chunk only its digest and its row's number are held.
    assert large - small < 2_000_000
    assert moved - small < 3_000_000


RunJobs = Callable[[str], Awaitable[dict[str, Any]]]


async def test_the_rows_are_what_the_api_lists(project: Project, run_jobs: RunJobs) -> None:
    await project.replace([Block("heading", "One", 1, 3), *paragraphs(30)])
    job = await project.enqueue()
    assert (await run_jobs(str(job.public_id)))["state"] == "success"
    listed = (await project.tenant.client.get(f"/projects/{project.id}/chunks?limit=100")).json()
    rows = await project.chunks()
    assert listed["total"] == len(rows)
    assert json.dumps(listed["items"][0]["metadata"]["headings"]) == '["One"]'
