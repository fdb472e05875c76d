"""Uploads that must be refused: each with its status, code and a sentence, and nothing left behind."""

import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.kit.config import Settings
from backend.main import create_app
from tests.conftest import Tenant, stored_keys
from tests.contents import corpus

BOUNDARY = "----a-boundary"
TEXT = b"Plain words in a small file."


async def nothing_is_left(tenant: Tenant, project: str, app: Any) -> None:
    assert (await tenant.client.get(f"/projects/{project}/files")).json() == {"files": []}
    assert (await tenant.client.get(f"/projects/{project}")).json()["status"] == "draft"
    assert (await tenant.client.get(f"/projects/{project}/jobs")).json() == {"jobs": []}
    assert await stored_keys(app, f"projects/{project}") == []


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


@pytest.fixture
def temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails when an upload leaves a temporary file or folder behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("filename", "content", "code"),
    [
        ("malware.exe", b"MZ\x90\0" + bytes(200), "UNSUPPORTED_FILE_TYPE"),
        ("malware.pdf", b"MZ\x90\0" + bytes(200), "UNSUPPORTED_FILE_TYPE"),
        ("malware.txt", b"\x7fELF\x02\x01\x01" + bytes(200), "UNSUPPORTED_FILE_TYPE"),
        ("script.exe", b"echo harmless text", "UNSUPPORTED_FILE_TYPE"),
        ("data.json", b'{"a": 1}', "UNSUPPORTED_FILE_TYPE"),
        ("page.md", b"<!DOCTYPE html><html></html>", "UNSUPPORTED_FILE_TYPE"),
        ("picture.pdf", b"\x89PNG\r\n\x1a\n" + bytes(100), "UNSUPPORTED_FILE_TYPE"),
        ("empty.txt", b"", "EMPTY_DOCUMENT"),
        ("empty.pdf", b"", "EMPTY_DOCUMENT"),
        ("empty", b"", "EMPTY_DOCUMENT"),
        ("", b"", "EMPTY_DOCUMENT"),
        ("blank.txt", b" \n\t\n", "EMPTY_DOCUMENT"),
        ("secret.pdf", corpus.pdf([["Hidden words."]], password="a password"), "DOCUMENT_ENCRYPTED"),
        ("scan.pdf", corpus.scanned_pdf(2), "DOCUMENT_HAS_NO_TEXT"),
        ("broken.pdf", corpus.pdf([["Some words."]])[:300], "DOCUMENT_BROKEN"),
        ("broken.docx", corpus.archive({"[Content_Types].xml": b"<", "word/document.xml": b"<"}), "DOCUMENT_BROKEN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_document(
    tenant: Tenant, app: Any, temporary_folders: None, filename: str, content: bytes, code: str
) -> None:
    project = await tenant.make_project()
    body = part("kind", b"raw_doc") + part("files", content, filename) + END
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    answer = await tenant.client.post(f"/projects/{project}/files/upload", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (400, code), answer.text
    if code == "UNSUPPORTED_FILE_TYPE":
        assert answer.json()["context"]["accepted"]
        assert "pload one of these types instead: " in answer.json()["context"]["advice"]
    await nothing_is_left(tenant, project, app)


async def test_the_contract_words_for_an_executable(tenant: Tenant) -> None:
    answer = await tenant.upload(await tenant.make_project(), "malware.exe", b"MZ\x90\0" + bytes(200))
    assert answer.json()["detail"] == "File 'malware.exe' has unsupported MIME type 'application/x-executable'"


@pytest.mark.parametrize(
    ("kind", "name", "content", "other"),
    [
        ("raw_doc", "rows.jsonl", b'{"question": "a", "answer": "b"}\n', "dataset_upload"),
        ("dataset_upload", "manual.pdf", corpus.pdf([["Some words."]]), "raw_doc"),
    ],
)
async def test_a_file_of_the_other_kind_is_told_so(
    tenant: Tenant, kind: str, name: str, content: bytes, other: str
) -> None:
    project = await tenant.make_project()
    answer = await tenant.upload(project, name, content, kind=kind)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "UNSUPPORTED_FILE_TYPE")
    assert f"kind={other}" in answer.json()["context"]["advice"]
    tenant.client.headers["Accept-Language"] = "fr"
    french = await tenant.upload(project, name, content, kind=kind)
    assert f"Ajoutez le champ kind={other}" in french.json()["context"]["advice"]
    assert (await tenant.upload(project, name, content, kind=other)).status_code == 201


async def test_of_two_files_the_second_is_bad(tenant: Tenant, app: Any) -> None:
    project = await tenant.make_project()
    files = [("files", ("good.txt", TEXT)), ("files", ("bad.pdf", b"%PDF-1.7 and no more"))]
    answer = await tenant.client.post(f"/projects/{project}/files/upload", files=files)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DOCUMENT_BROKEN")
    assert "bad.pdf" in answer.json()["detail"]
    await nothing_is_left(tenant, project, app)


async def test_51_mb_are_refused_before_they_are_read(tenant: Tenant, app: Any, temporary_folders: None) -> None:
    project = await tenant.make_project()
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield part("files", b"", "large.txt")[:-2]
        for _ in range(200):
            sent += 1
            yield b"word " * 209_715  # 1 MB

    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    answer = await tenant.client.post(f"/projects/{project}/files/upload", content=body(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "File exceeds maximum size of 50 MB"
    assert answer.json()["error_code"] == "FILE_TOO_LARGE"
    assert 50 <= sent <= 52
    await nothing_is_left(tenant, project, app)


async def test_the_project_is_full(tenant: Tenant, settings: Settings, app: Any) -> None:
    """A second application of the same database, with room for one megabyte."""
    small = create_app(settings.model_copy(update={"upload_max_project_mb": 1}))
    project = await tenant.make_project()
    async with small.router.lifespan_context(small):
        transport = httpx.ASGITransport(app=small, raise_app_exceptions=False)
        headers = {"Authorization": tenant.client.headers["Authorization"]}
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
            other = Tenant(client, tenant.email, tenant.password)
            first = await other.upload(project, "first.txt", b"word " * 150_000)
            assert first.status_code == 201
            second = await other.upload(project, "second.txt", b"word " * 150_000)
            assert (second.status_code, second.json()["error_code"]) == (413, "PROJECT_STORAGE_FULL")
            assert "1 MB" in second.json()["detail"]
    assert len((await tenant.client.get(f"/projects/{project}/files")).json()["files"]) == 1
    keys = await stored_keys(app, f"projects/{project}")
    assert len(keys) == 2
    assert not any("second" in key for key in keys)


@pytest.mark.parametrize(
    "filename",
    [
        "../../etc/passwd.txt",
        "/etc/cron.d/job.txt",
        "..\\..\\windows\\system.txt",
        "a\0b.txt",
        "r\u00e9sum\u00e9 \u6587\u4ef6 \U0001f600.txt",
        "a" * 300 + ".txt",
        "..",
        "",
        "; rm -rf ~.txt",
        "-rf.txt",
        "CON.txt",
        '"quoted".txt',
    ],
)
async def test_names_are_made_safe(tenant: Tenant, app: Any, filename: str) -> None:
    project = await tenant.make_project()
    quoted = filename.replace('"', '\\"')
    body = part("files", TEXT, quoted) + END
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    answer = await tenant.client.post(f"/projects/{project}/files/upload", content=body, headers=headers)
    assert answer.status_code == 201, answer.text
    name = answer.json()["files"][0]["filename"]
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert 0 < len(name) <= 120
    assert ".." not in name
    assert name[0] not in ".-"
    keys = await stored_keys(app, f"projects/{project}")
    assert any(key.endswith(f"/{name}") for key in keys)
    assert all(key.count("/") == 4 for key in keys)


MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
WHOLE = part("files", TEXT, "a.txt") + END


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (part("file", TEXT, "a.txt") + END, MULTIPART, "BAD_MULTIPART"),
        (part("files", TEXT) + END, MULTIPART, "NO_FILES"),
        (part("kind", b"raw_doc") + END, MULTIPART, "NO_FILES"),
        (END, MULTIPART, "NO_FILES"),
        (b"", MULTIPART, "BAD_MULTIPART"),
        (WHOLE[:-20], MULTIPART, "BAD_MULTIPART"),
        (part("files", TEXT, "a.txt"), MULTIPART, "BAD_MULTIPART"),
        (WHOLE, {"Content-Type": "multipart/form-data"}, "BAD_MULTIPART"),
        (WHOLE, {"Content-Type": "multipart/form-data; boundary="}, "BAD_MULTIPART"),
        (WHOLE, {"Content-Type": f"multipart/form-data; boundary={'x' * 300}"}, "BAD_MULTIPART"),
        (WHOLE, {"Content-Type": "multipart/form-data; boundary=other"}, "BAD_MULTIPART"),
        (b"\0" * 100, MULTIPART, "BAD_MULTIPART"),
        (b'{"files": []}', {"Content-Type": "application/json"}, "BAD_MULTIPART"),
        (b"files=a", {"Content-Type": "application/x-www-form-urlencoded"}, "BAD_MULTIPART"),
        (b"files", {}, "BAD_MULTIPART"),
        (part("kind", b"program") + WHOLE, MULTIPART, "UNKNOWN_FILE_KIND"),
        (part("kind", b"\0\xff") + WHOLE, MULTIPART, "UNKNOWN_FILE_KIND"),
        (part("kind", b"x" * 70_000) + WHOLE, MULTIPART, "BAD_MULTIPART"),
        (b"".join(part(f"f{number}", b"x") for number in range(40)) + WHOLE, MULTIPART, "BAD_MULTIPART"),
        (part("files", TEXT, "a.txt") * 101 + END, MULTIPART, "BAD_MULTIPART"),
        (part("files", TEXT, "a" * 10_000), MULTIPART, "BAD_MULTIPART"),
    ],
    ids=range(21),
)
async def test_a_bad_body(
    tenant: Tenant, app: Any, temporary_folders: None, body: bytes, headers: dict[str, str], code: str
) -> None:
    project = await tenant.make_project()
    answer = await tenant.client.post(f"/projects/{project}/files/upload", content=body, headers=headers)
    assert answer.status_code in (400, 422), answer.text
    if answer.status_code == 400:
        assert answer.json()["error_code"] == code, answer.text
    assert len(answer.json()["detail"]) < 500
    await nothing_is_left(tenant, project, app)


async def test_an_upload_to_a_project_that_goes_away_leaves_nothing(tenant: Tenant, app: Any) -> None:
    project = await tenant.make_project()

    async def body() -> AsyncIterator[bytes]:
        yield part("files", TEXT, "a.txt")
        await tenant.client.delete(f"/projects/{project}")
        yield END

    answer = await tenant.client.post(f"/projects/{project}/files/upload", content=body(), headers=MULTIPART)
    assert (answer.status_code, answer.json()["error_code"]) == (404, "PROJECT_NOT_FOUND")
    assert await stored_keys(app, f"projects/{project}") == []


async def test_the_body_of_an_anonymous_upload_is_not_read(anonymous: httpx.AsyncClient) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(50):
            sent += 1
            yield secrets.token_bytes(100)

    answer = await anonymous.post(f"/projects/{'0' * 32}/files/upload", content=body(), headers=MULTIPART)
    assert answer.status_code == 401
    assert sent <= 1
