"""The platform face's contents as the contract documents them, and one domain behind both faces."""

import io
import wave
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from backend.kit.config import Settings
from backend.kit.db import Database
from tests.conftest import Tenant, stored_keys
from tests.contents.web.site import Site, answer, running_site
from tests.contracts.shapes import matches

TEXT = "Un phare guide les marins. Il brûle la nuit, et se tait le jour. Celui-ci fut allumé en 1695.\n".encode()
PAGE = b"<html lang=en><head><title>Lamps</title></head><body><article><h1>Lamps</h1>" + b"".join(
    b"<p>Lamp number %d stands by the harbour and is lit each evening by its keeper, who climbs %d steps.</p>" % (n, n)
    for n in range(2, 30)
)
NO_ID = 2**62


def shape(**values: Any) -> dict[str, Any]:
    common = {"id": int, "project_id": int, "name": str, "status": "processed", "size": int}
    return {**common, "created_at": datetime, "updated_at": datetime, **values}


@pytest.fixture
async def site(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A web site that the service may fetch."""
    async with running_site() as found:
        monkeypatch.setattr(settings, "web_test_hosts", [f"127.0.0.1:{found.port}"])
        yield found


@pytest.fixture
async def project(tenant: Tenant) -> int:
    answered = await tenant.client.post("/api/projects", json={"name": "Phares"})
    return int(answered.json()["id"])


async def upload(
    tenant: Tenant, project: int | str, content: bytes, filename: str = "document.txt", **fields: str
) -> Any:
    data = {"project_id": str(project), "name": "Document", **fields}
    return await tenant.client.post("/api/contents/upload", files={"file": (filename, content)}, data=data)


async def studio_project(db: Database, number: int) -> str:
    from backend.projects.models import Project

    async with db.transaction() as session:
        return str(await session.scalar(select(Project.public_id).where(Project.id == number)))


async def test_upload_list_get_change_delete(tenant: Tenant, project: int, db: Database, app: Any) -> None:
    me = (await tenant.client.get("/api/users/me")).json()["id"]
    made = await upload(tenant, project, TEXT, "Été ../doc.txt", description="Les phares", file_type="pdf")
    assert made.status_code == 201, made.text
    expected = shape(
        project_id=project,
        name="Document",
        description="Les phares",
        type="text",
        url=None,
        file_path=f"/uploads/user_{me}/doc.txt",
        size=len(TEXT),
        character_count=len(TEXT.decode().strip()),
        language="fr",
        error_code=None,
        error_message=None,
        task_id=None,
    )
    content = made.json()
    matches(content, expected)
    matches((await tenant.client.get(f"/api/contents/{content['id']}")).json(), expected)
    listed = await tenant.client.get("/api/contents", params={"project_id": project})
    assert (listed.json(), listed.headers["x-total-count"]) == ([content], "1")
    changed = await tenant.client.put(
        f"/api/contents/{content['id']}", json={"name": "Document renommé", "size": 1, "status": "error", "url": "x"}
    )
    matches(changed.json(), {**expected, "name": "Document renommé"})
    assert changed.json()["updated_at"] > content["updated_at"]
    # The studio shows the same file, and chunks come of it.
    files = f"/projects/{await studio_project(db, project)}/files"
    [file] = (await tenant.client.get(files)).json()["files"]
    assert (file["filename"], file["status"], file["character_count"]) == (
        "Document renommé",
        "ready",
        content["character_count"],
    )
    assert (await tenant.client.delete(f"/api/contents/{content['id']}")).status_code == 204
    assert (await tenant.client.get(f"/api/contents/{content['id']}")).json()["error_code"] == "CONTENT_NOT_FOUND"
    assert (await tenant.client.get(files)).json() == {"files": []}
    assert await stored_keys(app, f"projects/{await studio_project(db, project)}") == []


async def test_the_contracts_pdf(tenant: Tenant, project: int, examples_folder: Path) -> None:
    """Read before the answer, so that it is `processed` where the contract's example is still `processing`."""
    content = (examples_folder / "quillon-40.pdf").read_bytes()
    fields = {"name": "Document PDF", "description": "Description du document", "file_type": "pdf"}
    made = await upload(tenant, project, content, "document.pdf", **fields)
    assert made.status_code == 201, made.text
    me = tenant.login["user"]["id"]
    expected = shape(
        project_id=project,
        name=fields["name"],
        description=fields["description"],
        type="pdf",
        url=None,
        file_path=f"/uploads/user_{me}/document.pdf",
        size=len(content),
        error_code=None,
    )
    matches(made.json(), expected)
    changes = {"name": "Document renommé", "description": "Description mise à jour"}
    changed = await tenant.client.put(f"/api/contents/{made.json()['id']}", json=changes)
    matches(changed.json(), {**expected, **changes})


async def test_what_the_studio_uploads_is_shown_here(tenant: Tenant) -> None:
    project = await tenant.make_project()
    await tenant.upload(project, "notes.md", b"# Notes\n\nSome words that are long enough to be read.")
    await tenant.upload(project, "rows.jsonl", b'{"instruction": "Q?", "output": "A."}\n', kind="dataset_upload")
    found = (await tenant.client.get("/api/contents")).json()
    assert [(row["type"], row["status"], row["name"]) for row in found] == [
        ("jsonl", "processed", "rows.jsonl"),
        ("markdown", "processed", "notes.md"),
    ]
    for row in found:
        assert (await tenant.client.delete(f"/api/contents/{row['id']}")).status_code == 204
    assert (await tenant.client.get(f"/projects/{project}/files")).json() == {"files": []}


@pytest.mark.parametrize("path", ["/api/contents", "/api/contents/url"])
async def test_a_website_becomes_a_document(
    tenant: Tenant, project: int, site: Site, run_jobs: Any, db: Database, path: str
) -> None:
    site.pages["/blog-post"] = answer(PAGE)
    url = f"http://127.0.0.1:{site.port}/blog-post"
    body = {"project_id": project, "name": "Article de blog", "url": url, "type": "website"}
    made = await tenant.client.post(path, json=body)
    assert made.status_code == 201, made.text
    expected = shape(
        project_id=project,
        name="Article de blog",
        description=None,
        type="website",
        url=url,
        file_path=None,
        size=0,
        status="pending",
        task_id=UUID,
    )
    matches(made.json(), expected)
    studio = f"/projects/{await studio_project(db, project)}"
    # Nothing of it can be used before it has its text.
    assert (await tenant.client.get(f"{studio}/files")).json() == {"files": []}
    assert (await tenant.client.post(f"{studio}/chunks/generate")).json()["error_code"] == "NO_DOCUMENTS"
    assert (await run_jobs(made.json()["task_id"]))["state"] == "success"
    found = (await tenant.client.get(f"/api/contents/{made.json()['id']}")).json()
    matches(found, {**expected, "status": "processed", "size": len(PAGE), "language": "en"})
    assert found["character_count"] > 2000
    [file] = (await tenant.client.get(f"{studio}/files")).json()["files"]
    assert (file["kind"], file["status"], file["mime_type"]) == ("raw_doc", "ready", "text/html")
    assert (await tenant.client.get(studio)).json()["status"] == "ready"
    job = await tenant.client.post(f"{studio}/chunks/generate")
    assert (await run_jobs(job.json()["job_id"]))["state"] == "success"
    chunks = (await tenant.client.get(f"{studio}/chunks")).json()
    assert chunks["total"] > 0
    assert "Lamp number 2 stands by the harbour" in chunks["items"][0]["content"]


async def test_the_same_key_adds_a_page_once(tenant: Tenant, project: int) -> None:
    body = {"project_id": project, "name": "Page", "url": "https://example.com/", "type": "website"}
    headers = {"Idempotency-Key": "once"}
    answers = [await tenant.client.post("/api/contents", json=body, headers=headers) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert (await tenant.client.get("/api/contents")).headers["x-total-count"] == "1"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://example.com/", "URL_INVALID"),
        ("example.com", "URL_INVALID"),
        ("http://", "URL_INVALID"),
        ("http://127.0.0.1/", "URL_NOT_ALLOWED"),
        ("http://169.254.169.254/latest/meta-data/", "URL_NOT_ALLOWED"),
        ("http://[::1]/", "URL_NOT_ALLOWED"),
        ("http://2130706433/", "URL_NOT_ALLOWED"),
        ("http://localhost/", "URL_NOT_ALLOWED"),
        ("https://user:password@example.com/", "URL_NOT_ALLOWED"),
        ("https://example.com:6379/", "URL_NOT_ALLOWED"),
    ],
)
async def test_urls_that_are_refused_at_once(tenant: Tenant, project: int, url: str, code: str) -> None:
    body = {"project_id": project, "name": "Page", "url": url, "type": "website"}
    for path in ("/api/contents", "/api/contents/url"):
        refused = await tenant.client.post(path, json=body)
        assert (refused.status_code, refused.json()["error_code"]) == (400, code), refused.text
    assert (await tenant.client.get("/api/contents")).json() == []


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "x" * 256},
        {"name": None},
        {"type": "pdf"},
        {"type": None},
        {"url": ""},
        {"url": None},
        {"project_id": 0},
        {"project_id": 2**63},
        {"project_id": "x"},
        {"description": "x" * 10_001},
    ],
)
async def test_bodies_that_are_not_valid(tenant: Tenant, project: int, body: dict[str, Any]) -> None:
    whole = {"project_id": project, "name": "Page", "url": "https://example.com/", "type": "website", **body}
    assert (await tenant.client.post("/api/contents", json=whole)).status_code == 422


async def test_uploads_that_are_refused_leave_nothing(tenant: Tenant, project: int, db: Database, app: Any) -> None:
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"content": b""}, 400, "EMPTY_DOCUMENT"),
        ({"content": b"\x7fELF" + bytes(100), "filename": "a.pdf", "file_type": "pdf"}, 400, "UNSUPPORTED_FILE_TYPE"),
        ({"content": b"%PDF-1.4 broken", "filename": "a.pdf"}, 400, "DOCUMENT_BROKEN"),
        ({"content": TEXT, "project": NO_ID}, 404, "PROJECT_NOT_FOUND"),
        ({"content": TEXT, "project": "x"}, 422, "VALIDATION_ERROR"),
        ({"content": TEXT, "project": ""}, 422, "VALIDATION_ERROR"),
        ({"content": TEXT, "name": "x" * 256}, 422, "VALIDATION_ERROR"),
        ({"content": TEXT, "name": "a\0b"}, 422, "VALIDATION_ERROR"),
        ({"content": bytes(51 * 1024 * 1024)}, 413, "FILE_TOO_LARGE"),
    ]
    for fields, status, code in cases:
        refused = await upload(tenant, **{"project": project, **fields})
        assert (refused.status_code, refused.json()["error_code"]) == (status, code), refused.text
    nothing = await tenant.client.post("/api/contents/upload", data={"project_id": str(project)}, files={})
    assert nothing.json()["error_code"] == "BAD_MULTIPART"
    wrong = await tenant.client.post("/api/contents/upload", files={"files": ("a.txt", TEXT)})
    assert "'file'" in wrong.json()["detail"]
    assert (await tenant.client.get("/api/contents")).json() == []
    assert await stored_keys(app, f"projects/{await studio_project(db, project)}") == []


async def test_speech_and_videos_are_taken(tenant: Tenant, project: int, db: Database) -> None:
    """What becomes of them: tests/contents/transcription and test_platform_helpers.py."""
    made = await upload(tenant, project, wav(), "speech.txt", file_type="text")
    assert made.status_code == 201, made.text
    matches(
        made.json(),
        shape(
            project_id=project,
            name="Document",
            description=None,
            type="audio",
            url=None,
            file_path=str,
            size=len(wav()),
            status="pending",
            character_count=0,
            language=None,
            error_code=None,
            error_message=None,
            task_id=UUID,
        ),
    )
    video = {"project_id": project, "name": "Vidéo YouTube", "type": "youtube"}
    for path in ("", "/url"):
        url = "https://www.youtube.com/watch?v=dQw4w9WgXcQ"
        added = await tenant.client.post(f"/api/contents{path}", json={**video, "url": url})
        assert (added.status_code, added.json()["status"], added.json()["type"]) == (201, "pending", "youtube")
        for url, code in [
            ("https://www.youtube.com/playlist?list=PL0123456789", "VIDEO_IS_PLAYLIST"),
            ("https://example.com/", "VIDEO_URL_INVALID"),
            ("http://127.0.0.1/watch?v=dQw4w9WgXcQ", "VIDEO_URL_INVALID"),
        ]:
            refused = await tenant.client.post(f"/api/contents{path}", json={**video, "url": url})
            assert (refused.status_code, refused.json()["error_code"]) == (400, code), refused.text
    assert len((await tenant.client.get("/api/contents")).json()) == 3
    studio = await studio_project(db, project)
    # The studio's contract has no such files at all, and shows them once they have their text.
    assert (await tenant.upload(studio, "speech.wav", wav())).json()["error_code"] == "UNSUPPORTED_FILE_TYPE"
    assert (await tenant.client.get(f"/projects/{studio}/files")).json() == {"files": []}


def wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(32_000))
    return buffer.getvalue()


async def test_contents_of_others_are_not_found(tenant: Tenant, make_tenant: Any, project: int) -> None:
    content = (await upload(tenant, project, TEXT)).json()["id"]
    other = await make_tenant()
    for method, path in (("GET", "/{}"), ("PUT", "/{}"), ("DELETE", "/{}"), ("GET", "?project_id={}")):
        target = content if "{}" in path and "project" not in path else project
        body = {"name": "Taken"} if method == "PUT" else None
        found = await other.client.request(method, f"/api/contents{path.format(target)}", json=body)
        assert found.status_code == 404, found.text
    link = {"project_id": project, "name": "Page", "url": "https://example.com/", "type": "website"}
    for path in ("", "/url"):
        assert (await other.client.post(f"/api/contents{path}", json=link)).status_code == 404
    assert (await upload(other, project, TEXT)).status_code == 404
    assert (await other.client.get("/api/contents")).json() == []
    assert (await tenant.client.get(f"/api/contents/{content}")).json()["name"] == "Document"
