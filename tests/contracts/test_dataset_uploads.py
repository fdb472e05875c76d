"""Uploads of kind dataset_upload: what the answer tells, what is refused, and who may see it."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update

from backend.kit.db import Database
from backend.projects.models import Project
from tests.conftest import Tenant, stored_keys
from tests.contracts.shapes import matches
from tests.datasets.lamps import manual
from tests.datasets.test_importing import lines, questions, upload
from tests.llm_server import LLMServer

RunJobs = Callable[[str], Awaitable[dict[str, Any]]]


async def test_the_answer_of_an_upload(tenant: Tenant, app: Any) -> None:
    project = await tenant.make_project()
    content = lines([*questions(2), {"instruction": "Q"}])
    file = await upload(tenant, project, content, "../my rows.jsonl")
    matches(
        file,
        {
            "id": UUID,
            "filename": "my_rows.jsonl",
            "kind": "dataset_upload",
            "status": "ready",
            "mime_type": "application/jsonl",
            "size_bytes": len(content),
            "purpose": "examples",
            "import_job_id": UUID,
            "import": {
                "shape": "instruction",
                "rows": 3,
                "valid": 2,
                "invalid": 1,
                "errors": [{"line": 3, "code": "missing_field", "message": str}],
                "error_counts": {"missing_field": 1},
                "imported": 0,
            },
        },
    )
    job = (await tenant.client.get(f"/jobs/{file['import_job_id']}")).json()
    assert (job["type"], job["status"]) == ("dataset_import", "queued")
    listed = (await tenant.client.get(f"/projects/{project}/files?kind=dataset_upload")).json()["files"]
    assert listed == [file]
    assert {key.rpartition("/")[2] for key in await stored_keys(app, f"projects/{project}")} == {
        "my_rows.jsonl",
        "-rows.jsonl",
    }


async def test_a_document_has_no_import(tenant: Tenant) -> None:
    file = (await tenant.upload(await tenant.make_project(), "a.txt", b"Plain words.")).json()["files"][0]
    assert (file["import"], file["import_job_id"], file["purpose"]) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "content", "mime_type"),
    [
        ("rows.json", json.dumps(questions(2)).encode(), "application/json"),
        ("rows.json", json.dumps({"data": questions(2)}).encode(), "application/json"),
        ("rows.jsonl", lines(questions(2)), "application/jsonl"),
        ("rows.txt", lines(questions(2)), "text/plain"),
        ("rows.csv", "\ufeffQuestion;Réponse\nQ1;A1\nQ2;A2\n".encode(), "text/csv"),
    ],
    ids=range(5),
)
async def test_types_by_content(tenant: Tenant, name: str, content: bytes, mime_type: str) -> None:
    file = await upload(tenant, await tenant.make_project(), content, name)
    assert (file["mime_type"], file["import"]["valid"]) == (mime_type, 2)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("rows.jsonl", b'{"text": "only words"}\n{"a": 1}\n', "DATASET_HAS_NO_ROWS"),
        ("rows.json", b"[]", "DATASET_HAS_NO_ROWS"),
        ("rows.json", b"[1, 2]", "DATASET_HAS_NO_ROWS"),
        ("rows.csv", b"question,answer\n", "DATASET_HAS_NO_ROWS"),
        ("rows.txt", b"Just some prose.", "DATASET_HAS_NO_ROWS"),
        ("rows.json", b"[" * 100_000, "DOCUMENT_TOO_COMPLEX"),
        ("rows.json", b'{"train": [{"q": 1}], "test": [{"q": 1}]}', "DOCUMENT_BROKEN"),
        ("rows.jsonl", b"", "EMPTY_DOCUMENT"),
        ("rows.jsonl", b"\n \n", "EMPTY_DOCUMENT"),
        ("rows.jsonl", lines(questions(9)).replace(b"lamp 3", b"la\0p 3"), "UNSUPPORTED_FILE_TYPE"),
        ("rows.csv", b"PK\x03\x04" + bytes(100), "UNSUPPORTED_FILE_TYPE"),
        ("rows.json", b"%PDF-1.7 and more", "UNSUPPORTED_FILE_TYPE"),
    ],
    ids=range(12),
)
async def test_a_bad_dataset_leaves_nothing(tenant: Tenant, app: Any, name: str, content: bytes, code: str) -> None:
    project = await tenant.make_project()
    good = ("files", ("good.jsonl", lines(questions(1))))
    answer = await tenant.client.post(
        f"/projects/{project}/files/upload",
        files=[good, ("files", (name, content))],
        data={"kind": "dataset_upload"},
    )
    assert (answer.status_code, answer.json()["error_code"]) == (400, code), answer.text
    assert name in answer.json()["detail"]
    assert (await tenant.client.get(f"/projects/{project}/files")).json() == {"files": []}
    assert (await tenant.client.get(f"/projects/{project}/jobs")).json() == {"jobs": []}
    assert await stored_keys(app, f"projects/{project}") == []


async def test_no_good_row_names_the_first_reasons(tenant: Tenant) -> None:
    project = await tenant.make_project()
    answer = await tenant.upload(project, "rows.jsonl", b'{"text": "words"}\nnot JSON\n', "dataset_upload")
    body = answer.json()
    assert "Row 1: A row of plain 'text'" in body["detail"]
    assert "Row 2: Not valid JSON" in body["detail"]
    assert body["context"]["error_counts"] == {"text_only": 1, "bad_json": 1}
    assert [error["line"] for error in body["context"]["errors"]] == [1, 2]


@pytest.mark.parametrize(
    ("field", "code"), [("purpose", "UNKNOWN_PURPOSE"), ("split", "UNKNOWN_SPLIT"), ("kind", "UNKNOWN_FILE_KIND")]
)
async def test_unknown_values_of_fields(tenant: Tenant, field: str, code: str) -> None:
    answer = await tenant.client.post(
        f"/projects/{await tenant.make_project()}/files/upload",
        files=[("files", ("rows.jsonl", lines(questions(1))))],
        data={"kind": "dataset_upload", field: "something"},
    )
    assert (answer.status_code, answer.json()["error_code"]) == (400, code)
    assert " or " in answer.json()["detail"]


async def test_another_tenants_project(tenant: Tenant, make_tenant: Callable[[], Awaitable[Tenant]]) -> None:
    project = await tenant.make_project()
    file = await upload(tenant, project, lines(questions(1)))
    other = await make_tenant()
    assert (await other.upload(project, "rows.jsonl", lines(questions(1)), "dataset_upload")).status_code == 404
    assert (await other.client.get(f"/projects/{project}/files")).status_code == 404
    assert (await other.client.get(f"/jobs/{file['import_job_id']}")).status_code == 404
    assert (await other.client.delete(f"/projects/{project}/files/{file['id']}")).status_code == 404
    assert len((await tenant.client.get(f"/projects/{project}/files")).json()["files"]) == 1


async def test_an_upload_while_a_generation_runs(tenant: Tenant, run_jobs: RunJobs, llm_server: LLMServer) -> None:
    project = await tenant.make_project()
    await tenant.upload(project, "lamps.md", manual())
    await run_jobs((await tenant.client.post(f"/projects/{project}/chunks/generate")).json()["job_id"])
    generation = (await tenant.client.post(f"/projects/{project}/dataset/generate", json={})).json()["job_id"]
    file = await upload(tenant, project, lines(questions(20)))
    job = await run_jobs(file["import_job_id"])
    assert (job["state"], job["result"]["valid"]) == ("success", 20)
    assert (await tenant.client.get(f"/projects/{project}")).json()["status"] == "generating"
    ended = await run_jobs(generation)
    assert ended["state"] == "success", ended["error_message"]
    listed = (await tenant.client.get(f"/projects/{project}/dataset/examples?limit=500")).json()
    files = [item["metadata"].get("file") for item in listed["items"]]
    assert files.count("rows.jsonl") == 20
    assert len(files) > 20


async def test_training_on_imported_examples_alone(tenant: Tenant, run_jobs: RunJobs, db: Database) -> None:
    project = await tenant.make_project()
    file = await upload(tenant, project, lines(questions(20)))
    async with db.transaction() as session:
        await session.execute(
            update(Project)
            .where(Project.public_id == project)
            .values(base_model_id="tiny-llama", model_info={"valid": True, "warnings": []})
        )
    early = await tenant.client.post(f"/projects/{project}/train/start", json={"method": "lora"})
    assert (early.status_code, early.json()["error_code"]) == (400, "NO_DATASET")
    await run_jobs(file["import_job_id"])
    answer = await tenant.client.post(f"/projects/{project}/train/start", json={"method": "lora"})
    assert answer.status_code == 202, answer.text
