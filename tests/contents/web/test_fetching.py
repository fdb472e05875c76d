"""The job that fetches a page: what it keeps, how it fails, killed in the middle, deleted and cancelled meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from backend.contents import fetching
from backend.contents.extraction import ExtractionLimits
from backend.contents.models import Content
from backend.contents.web.fetch import Fetcher
from backend.jobs.models import Job
from backend.jobs.running import JobRun
from backend.kit.config import Settings
from backend.kit.db import Database
from celery_app.job_task import run_job
from celery_app.runtime import Runtime
from tests.conftest import Tenant, stored_keys
from tests.contents.web.site import Site, answer, redirect, running_site

PAGE = b"<html><head><title>Lamps</title></head><body><article>" + b"".join(
    b"<p>Lamp number %d stands by the harbour and is lit each evening by its keeper, who climbs %d steps.</p>" % (n, n)
    for n in range(2, 30)
)


class Case:
    """One project of one tenant, to which pages of the site are added."""

    def __init__(
        self, tenant: Tenant, site: Site, db: Database, app: Any, run_jobs: Any, project: dict[str, Any]
    ) -> None:
        self.tenant, self.site, self.db, self.app, self.run_jobs = tenant, site, db, app, run_jobs
        self.project = project["id"]

    async def add(self, path: str = "/") -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.site.port}{path}"
        body = {"project_id": self.project, "name": "Page", "url": url, "type": "website"}
        made = await self.tenant.client.post("/api/contents", json=body)
        assert made.status_code == 201, made.text
        return dict(made.json())

    async def fetched(self, content: dict[str, Any]) -> dict[str, Any]:
        await self.run_jobs(content["task_id"])
        return await self.shown(content)

    async def shown(self, content: dict[str, Any]) -> dict[str, Any]:
        return dict((await self.tenant.client.get(f"/api/contents/{content['id']}")).json())

    async def row(self, content: dict[str, Any]) -> Content | None:
        async with self.db.transaction() as session:
            return await session.get(Content, content["id"])

    async def blobs(self) -> list[str]:
        from backend.projects.models import Project

        async with self.db.transaction() as session:
            public_id = await session.scalar(select(Project.public_id).where(Project.id == self.project))
        return await stored_keys(self.app, f"projects/{public_id}")


@pytest.fixture
async def case(
    tenant: Tenant, settings: Settings, monkeypatch: pytest.MonkeyPatch, db: Database, app: Any, run_jobs: Any
) -> AsyncIterator[Case]:
    async with running_site() as site:
        monkeypatch.setattr(settings, "web_test_hosts", [f"127.0.0.1:{site.port}"])
        project = (await tenant.client.post("/api/projects", json={"name": "Lamps"})).json()
        yield Case(tenant, site, db, app, run_jobs, project)


async def test_a_page_keeps_its_facts_and_two_files(case: Case) -> None:
    case.site.pages |= {"/": redirect("/real"), "/real": answer(PAGE)}
    content = await case.add()
    found = await case.fetched(content)
    assert (found["status"], found["error_code"], found["size"]) == ("processed", None, len(PAGE))
    row = await case.row(content)
    assert row is not None and row.text_key is not None
    assert row.meta == {"title": "Lamps", "url": f"http://127.0.0.1:{case.site.port}/real"}
    assert sorted(await case.blobs()) == sorted([row.file_key, row.text_key])
    assert await case.app.state.services.storage.get_bytes(row.file_key) == PAGE
    assert case.site.requests == ["/robots.txt", "/", "/real"]
    assert (await case.tenant.client.delete(f"/api/contents/{content['id']}")).status_code == 204
    assert await case.blobs() == []


async def test_a_page_that_is_a_pdf_is_read_as_one(case: Case, examples_folder: Any) -> None:
    case.site.pages["/"] = answer(next(examples_folder.rglob("*.pdf")).read_bytes(), content_type="application/pdf")
    content = await case.add()
    assert (await case.fetched(content))["status"] == "processed"
    row = await case.row(content)
    assert row is not None
    assert (row.type, row.mime_type) == ("website", "application/pdf")
    assert row.page_count and row.page_count > 1


@pytest.mark.parametrize(
    ("page", "code"),
    [
        (answer(status="404 Not Found"), "URL_NOT_FOUND"),
        (answer(status="403 Forbidden"), "URL_REFUSED"),
        (redirect("http://169.254.169.254/latest/meta-data/"), "URL_NOT_ALLOWED"),
        (redirect("/"), "URL_TOO_MANY_REDIRECTS"),
        (answer(PAGE, content_type="image/png"), "URL_TYPE_NOT_SUPPORTED"),
        (answer(PAGE, Content_Length="99999999999"), "URL_TOO_LARGE"),
        (answer(b"<html><div id=root></div><script>x</script></html>"), "WEBSITE_HAS_NO_TEXT"),
        (answer(b"%PDF-1.4 broken", content_type="application/pdf"), "DOCUMENT_BROKEN"),
    ],
)
async def test_failures_end_in_the_content_with_their_reason(case: Case, page: bytes, code: str) -> None:
    case.site.pages["/"] = page
    content = await case.add()
    job = await case.run_jobs(content["task_id"])
    found = await case.shown(content)
    assert (job["state"], job["error_code"], job["attempts"]) == ("failed", code, 1)
    assert (found["status"], found["error_code"], found["error_message"]) == ("error", code, job["error_message"])
    assert len(found["error_message"]) > 40
    # Both the content and its job tell it in the language of whoever reads.
    french = {"Accept-Language": "fr"}
    shown = (await case.tenant.client.get(f"/api/contents/{content['id']}", headers=french)).json()
    ended = (await case.tenant.client.get(f"/jobs/{content['task_id']}", headers=french)).json()
    assert shown["error_message"] == ended["error_message"] != found["error_message"]
    assert not {"{", "}"} & set(shown["error_message"])
    assert await case.blobs() == []
    # The project's other work does not suffer.
    assert (await case.tenant.client.get("/projects")).json()["items"][0]["status"] == "draft"


async def test_robots_are_respected(case: Case) -> None:
    case.site.pages |= {
        "/robots.txt": answer(b"User-agent: *\nDisallow: /no", content_type="text/plain"),
        "/no": answer(PAGE),
        "/": redirect("/no"),
    }
    for path in ("/no", "/"):
        assert (await case.fetched(await case.add(path)))["error_code"] == "ROBOTS_DISALLOW"
    assert "/no" not in case.site.requests


async def test_trouble_of_the_network_is_tried_again(case: Case) -> None:
    case.site.pages["/"] = answer(status="503 Busy")
    content = await case.add()
    job = await case.run_jobs(content["task_id"])
    assert (job["state"], job["attempts"]) == ("queued", 1)
    assert "503" in job["message"]
    assert job["available_at"] > job["started_at"]
    assert (await case.shown(content))["status"] == "processing"
    case.site.pages["/"] = answer(PAGE)
    await make_due(case, content)
    assert (await case.fetched(content))["status"] == "processed"
    case.site.pages["/"] = answer(status="503 Busy")
    content = await case.add()
    for _ in range(4):
        await make_due(case, content)
        found = await case.fetched(content)
    assert (found["status"], found["error_code"]) == ("error", "URL_UNREACHABLE")


async def make_due(case: Case, content: dict[str, Any]) -> None:
    async with case.db.transaction() as session:
        job = (await session.scalars(select(Job).where(Job.public_id == content["task_id"]))).one()
        job.available_at = None


async def test_a_run_that_was_lost_in_the_middle_leaves_one_set_of_files(
    case: Case, job_thread: ThreadPoolExecutor
) -> None:
    case.site.pages["/"] = answer(PAGE)
    content = await case.add()
    async with case.db.transaction() as session:
        job = (await session.scalars(select(Job).where(Job.public_id == content["task_id"]))).one()

    async def dies(run: JobRun, current: Runtime) -> dict[str, Any]:
        """Up to the moment before its end is written; then the lease goes to somebody else."""
        needs = fetching.Fetching(Fetcher.of(current.settings), ExtractionLimits(), 500)
        put_file = current.storage.put_file
        stored: list[str] = []

        async def put_and_lose(key: str, path: Any) -> None:
            await put_file(key, path)
            stored.append(key)
            if len(stored) == 2:
                async with current.db.transaction() as session:
                    row = (await session.scalars(select(Job).where(Job.id == job.id))).one()
                    row.state, row.fence, row.lease_until = "queued", row.fence + 1, None

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(current.storage, "put_file", put_and_lose)
            return await fetching.fetch(run, current.storage, needs)

    await asyncio.get_running_loop().run_in_executor(job_thread, run_job, job.id, dies)
    assert (await case.shown(content))["status"] == "processing"
    assert len(await case.blobs()) == 2
    assert (await case.fetched(content))["status"] == "processed"
    row = await case.row(content)
    assert row is not None
    assert sorted(await case.blobs()) == sorted([row.file_key, str(row.text_key)])


async def test_a_page_deleted_while_it_is_fetched_leaves_nothing(case: Case) -> None:
    content: dict[str, Any] = {}

    async def delete_then_answer(writer: Any, head: str) -> None:
        # Straight to the row: the job must not learn of it by being cancelled.
        async with case.db.transaction() as session:
            await session.delete(await session.get(Content, content["id"]))
        writer.write(answer(PAGE))

    case.site.pages["/"] = delete_then_answer
    content |= await case.add()
    job = await case.run_jobs(content["task_id"])
    assert (job["state"], job["result"]) == ("success", {"deleted": True})
    assert await case.blobs() == []


async def test_deleting_a_content_cancels_its_job_and_cancelling_a_job_ends_the_content(case: Case) -> None:
    content = await case.add()
    await case.tenant.client.delete(f"/api/contents/{content['id']}")
    assert (await case.tenant.client.get(f"/jobs/{content['task_id']}")).json()["status"] == "cancelled"
    content = await case.add()
    await case.tenant.client.post(f"/jobs/{content['task_id']}/cancel")
    found = await case.shown(content)
    assert (found["status"], found["error_code"]) == ("error", "FETCH_CANCELLED")


async def test_a_full_project_takes_no_page(case: Case, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "upload_max_project_mb", 1)
    case.site.pages["/"] = answer(PAGE + b"<!--" + b"x" * (1 << 20) + b"-->")
    content = await case.add()
    assert (await case.fetched(content))["error_code"] == "PROJECT_STORAGE_FULL"
    assert await case.blobs() == []
