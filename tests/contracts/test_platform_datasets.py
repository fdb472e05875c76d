"""The contract's examples of datasets and pairs, and what happens to them when things go wrong."""

import asyncio
from datetime import datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from backend.contents.models import Content
from backend.datasets.models import Dataset, Example
from backend.jobs.models import Job
from backend.kit.db import Database
from backend.training.models import FineTuning
from tests.conftest import Tenant
from tests.contracts.conftest import SAMPLE
from tests.contracts.shapes import matches

DATASET = {
    "id": int,
    "project_id": int,
    "name": "Nouveau dataset",
    "description": "Description du nouveau dataset",
    "model": "gpt-3.5-turbo",
    "status": "ready",
    "pairs_count": int,
    "character_count": int,
    "size": int,
    "created_at": datetime,
    "updated_at": datetime,
}
BODY = {key: DATASET[key] for key in ("name", "description", "model")}
PAIR: dict[str, Any] = {
    "question": "Qu'est-ce que le fine-tuning?",
    "answer": "Le fine-tuning est un processus qui permet d'adapter un modèle de langage pré-entraîné.",
    "metadata": {"source": "manual"},
}
OTHER: dict[str, Any] = {
    "question": "Comment fonctionne le fine-tuning?",
    "answer": "Le fine-tuning fonctionne en réentraînant un modèle pré-entraîné sur un dataset.",
    "metadata": {"source": "manual"},
}


async def make_project(tenant: Tenant) -> int:
    answer = await tenant.client.post("/api/projects", json={"name": "Mine"})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


async def make(tenant: Tenant, project: int, status: int = 201, **fields: Any) -> Any:
    answer = await tenant.client.post("/api/datasets", json={"project_id": project, **BODY, **fields})
    assert answer.status_code == status, answer.text
    return answer.json()


async def call(tenant: Tenant, method: str, path: str, body: Any = None, status: int = 200, **params: Any) -> Any:
    answer = await tenant.client.request(method, f"/api/datasets{path}", json=body, params=params)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


@pytest.fixture
async def dataset(tenant: Tenant) -> dict[str, Any]:
    """An empty one, for pairs that are written by hand."""
    made: dict[str, Any] = await make(tenant, await make_project(tenant))
    matches(made, {**DATASET, "pairs_count": 0, "character_count": 0, "size": 0, "task_id": None})
    return made


async def upload(tenant: Tenant, db: Database, project: str, name: str, content: str) -> tuple[int, int]:
    """Uploads a document on the studio face; returns the numbers of the project and the content."""
    answer = await tenant.upload(project, name, content.encode())
    assert answer.status_code == 201, answer.text
    async with db.transaction() as session:
        row = (await session.scalars(select(Content).where(Content.public_id == answer.json()["files"][0]["id"]))).one()
        return row.project_id, row.id


async def last_job(db: Database, project: int) -> Job:
    async with db.transaction() as session:
        return (
            await session.scalars(select(Job).where(Job.project_id == project).order_by(Job.id.desc()).limit(1))
        ).one()


async def test_made_of_chosen_contents_in_steps(tenant: Tenant, db: Database, run_jobs: Any) -> None:
    studio = await tenant.make_project(config={"num_examples_target": 8})
    project, chosen = await upload(tenant, db, studio, "quillon.md", SAMPLE)
    _, left_out = await upload(tenant, db, studio, "other.md", "The Varnholt press was built in 1931 in Emden. " * 30)
    made = await make(tenant, project, content_ids=[chosen, chosen])
    matches(made, {**DATASET, "status": "processing", "pairs_count": 0, "task_id": str})
    refused = await make(tenant, project, 409, content_ids=[left_out])
    assert refused["error_code"] == "JOB_ALREADY_RUNNING"
    in_use = await call(tenant, "DELETE", f"/{made['id']}", status=409)
    assert (in_use["error_code"], in_use["context"]["job_id"]) == ("DATASET_IN_USE", made["task_id"])

    assert (await run_jobs(made["task_id"]))["state"] == "success"
    generation = await last_job(db, project)
    assert (generation.kind, generation.state) == ("dataset_generate", "queued")
    now = await call(tenant, "GET", f"/{made['id']}")
    assert (now["status"], now["task_id"]) == ("processing", str(generation.public_id))
    # By hand, while the model writes.
    await call(tenant, "POST", f"/{made['id']}/pairs", PAIR, 201)
    assert (await run_jobs(str(generation.public_id)))["state"] == "success"

    found = await call(tenant, "GET", f"/{made['id']}/pairs", limit=1000)
    matches(found, DATASET)
    assert found["pairs_count"] == len(found["pairs"]) > 4
    generated = [pair for pair in found["pairs"] if pair["metadata"]["source"] != "manual"]
    assert len(generated) == found["pairs_count"] - 1
    async with db.transaction() as session:
        rows = (await session.scalars(select(Example).where(Example.dataset_id == made["id"]))).all()
        chunks = {row.id: row.chunk_id for row in rows}
    assert {pair["metadata"]["source"] for pair in generated} == {f"content_{chosen}"}
    assert all(pair["metadata"]["chunk_id"] == chunks[pair["id"]] for pair in generated)
    texts = "".join(pair["question"] + pair["answer"] for pair in found["pairs"])
    # A blank line stands between an instruction and its input, and belongs to neither.
    assert 0 <= len(texts) - found["character_count"] <= 2 * found["pairs_count"]
    assert found["size"] >= found["character_count"]
    # The studio shows it as the project's current one.
    stats = (await tenant.client.get(f"/projects/{studio}/dataset/stats")).json()
    assert stats["valid"] == found["pairs_count"]


async def test_contents_that_are_still_read_are_waited_for(tenant: Tenant, db: Database, run_jobs: Any) -> None:
    studio = await tenant.make_project()
    project, content = await upload(tenant, db, studio, "quillon.md", SAMPLE)
    await set_status(db, content, "pending")
    made = await make(tenant, project, content_ids=[content])
    waiting = await run_jobs(made["task_id"])
    assert (waiting["state"], waiting["attempts"]) == ("queued", 1)
    assert "still being read" in waiting["message"]
    await set_status(db, content, "error")
    async with db.transaction() as session:
        job = (await session.scalars(select(Job).where(Job.public_id == made["task_id"]))).one()
        job.available_at = None
    assert (await run_jobs(made["task_id"]))["error_code"] == "CONTENT_NOT_READY"
    failed = await call(tenant, "GET", f"/{made['id']}")
    matches(failed, {"status": "error", "error_code": "CONTENT_NOT_READY", "error_message": str, "task_id": None})
    assert (await call(tenant, "POST", f"/{made['id']}/pairs", PAIR, 409))["error_code"] == "DATASET_FAILED"
    assert (await make(tenant, project, 400, content_ids=[content]))["error_code"] == "CONTENT_NOT_READY"
    await call(tenant, "DELETE", f"/{made['id']}", status=204)
    await call(tenant, "GET", f"/{made['id']}", status=404)


async def set_status(db: Database, content: int, status: str) -> None:
    async with db.transaction() as session:
        (await session.get_one(Content, content)).status = status


async def test_what_no_dataset_is_made_of(tenant: Tenant, make_tenant: Any, db: Database) -> None:
    other = await make_tenant()
    theirs, content = await upload(other, db, await other.make_project(), "a.md", SAMPLE)
    mine = await make_project(tenant)
    assert (await make(tenant, mine, 404, content_ids=[content]))["error_code"] == "CONTENT_NOT_FOUND"
    await make(tenant, theirs, 404, content_ids=[content])
    await make(tenant, mine, 404, content_ids=[2**62])
    for bad in ({"content_ids": [0]}, {"content_ids": ["x"]}, {"name": " "}, {"model": ""}, {"content_ids": [2**63]}):
        await make(tenant, mine, 422, **bad)
    studio = await tenant.make_project()
    rows = b'{"instruction": "Why?", "output": "Because."}\n'
    answer = await tenant.upload(studio, "rows.jsonl", rows, kind="dataset_upload")
    async with db.transaction() as session:
        uploaded = (
            await session.scalars(select(Content).where(Content.public_id == answer.json()["files"][0]["id"]))
        ).one()
    refused = await make(tenant, uploaded.project_id, 400, content_ids=[uploaded.id])
    assert refused["error_code"] == "CONTENT_NOT_A_DOCUMENT"


async def test_list_look_rename_delete(tenant: Tenant, dataset: dict[str, Any]) -> None:
    second = await make(tenant, await make_project(tenant))
    answer = await tenant.client.get("/api/datasets", params={"limit": 1})
    assert (answer.headers["X-Total-Count"], [row["id"] for row in answer.json()]) == ("2", [second["id"]])
    listed = await call(tenant, "GET", "", project_id=dataset["project_id"])
    matches(listed, [{**DATASET, "id": dataset["id"]}])
    matches(await call(tenant, "GET", f"/{dataset['id']}"), DATASET)
    changed = await call(tenant, "PUT", f"/{dataset['id']}", {"name": "Dataset renommé", "description": None})
    matches(changed, {**DATASET, "name": "Dataset renommé", "description": None})
    assert changed["updated_at"] > dataset["updated_at"]
    await call(tenant, "PUT", f"/{dataset['id']}", {"name": None}, 422)
    await call(tenant, "DELETE", f"/{dataset['id']}", status=204)
    for method in ("GET", "PUT", "DELETE"):
        gone = await call(tenant, method, f"/{dataset['id']}", {}, 404)
        assert gone["error_code"] == "DATASET_NOT_FOUND"
    assert await call(tenant, "GET", "", project_id=dataset["project_id"]) == []


async def test_not_deleted_under_a_fine_tuning(tenant: Tenant, dataset: dict[str, Any], db: Database) -> None:
    await call(tenant, "POST", f"/{dataset['id']}/pairs", PAIR, 201)
    async with db.transaction() as session:
        run = FineTuning(
            project_id=dataset["project_id"],
            dataset_id=dataset["id"],
            name="Run",
            method="lora",
            model="m",
            status="completed",
        )
        session.add(run)
        await session.flush()
    refused = await call(tenant, "DELETE", f"/{dataset['id']}", status=409)
    assert (refused["error_code"], refused["context"]["fine_tunings"]) == ("DATASET_IN_USE", [run.id])
    assert (await call(tenant, "GET", f"/{dataset['id']}"))["pairs_count"] == 1


async def test_pairs_one_by_one(tenant: Tenant, dataset: dict[str, Any]) -> None:
    path = f"/{dataset['id']}/pairs"
    first = await call(tenant, "POST", path, PAIR, 201)
    matches(first, {**PAIR, "id": int, "dataset_id": dataset["id"], "created_at": datetime})
    again = await call(tenant, "POST", path, {**PAIR, "question": f"  {PAIR['question'].upper()} "}, 409)
    assert (again["error_code"], again["context"]["duplicate_of"]) == ("DUPLICATE_PAIR", first["id"])
    for bad in ({"question": " "}, {"answer": "..."}, {"answer": "a" * 100_001}, {"metadata": {"a": "b" * 9000}}):
        assert (await call(tenant, "POST", path, {**PAIR, **bad}, 400))["error_code"] == "PAIR_REFUSED"
    wrong: list[dict[str, Any]] = [{"question": None}, {"question": 1}, {"metadata": []}, {"answer": "a\0b"}]
    for bad in wrong:
        await call(tenant, "POST", path, {**PAIR, **bad}, 422)
    second = await call(tenant, "POST", path, {**OTHER, "metadata": None}, 201)
    assert second["metadata"] == {"source": "manual"}
    found = await call(tenant, "GET", path)
    matches(found, {**DATASET, "pairs_count": 2, "pairs": [{"id": int, "question": str}]})
    assert [pair["id"] for pair in found["pairs"]] == [first["id"], second["id"]]
    assert found["size"] > found["character_count"] > 0
    window = await tenant.client.get(f"/api/datasets{path}", params={"limit": 1, "offset": 1})
    assert (window.headers["X-Total-Count"], [pair["id"] for pair in window.json()["pairs"]]) == ("2", [second["id"]])

    changed = await call(
        tenant, "PUT", f"{path}/{first['id']}", {"answer": "Another.", "metadata": {"judge": {"faithfulness": "x"}}}
    )
    assert (changed["answer"], changed["question"]) == ("Another.", PAIR["question"])
    assert changed["metadata"] == {"source": "manual", "judge": {"faithfulness": "x"}}
    twin = {"question": OTHER["question"], "answer": OTHER["answer"]}
    clash = await call(tenant, "PUT", f"{path}/{first['id']}", twin, 409)
    assert clash["context"]["duplicate_of"] == second["id"]
    assert (await call(tenant, "GET", f"{path}/{first['id']}")) == changed
    assert (await call(tenant, "PUT", f"{path}/{first['id']}", {"answer": "?"}, 400))["error_code"] == "PAIR_REFUSED"
    await call(tenant, "DELETE", f"{path}/{first['id']}", status=204)
    for method in ("GET", "PUT", "DELETE"):
        assert (await call(tenant, method, f"{path}/{first['id']}", {}, 404))["error_code"] == "PAIR_NOT_FOUND"
    assert (await call(tenant, "GET", f"/{dataset['id']}"))["pairs_count"] == 1


async def test_an_edit_of_equal_length_is_counted(tenant: Tenant, dataset: dict[str, Any]) -> None:
    path = f"/{dataset['id']}/pairs"
    pair = await call(tenant, "POST", path, {"question": "Why so?", "answer": "abcd efgh"}, 201)
    assert (await call(tenant, "GET", f"/{dataset['id']}"))["size"] == 16
    await call(tenant, "PUT", f"{path}/{pair['id']}", {"answer": "abcd éfgh"})
    after = await call(tenant, "GET", f"/{dataset['id']}")
    assert (after["character_count"], after["size"]) == (16, 17)


async def test_in_bulk(tenant: Tenant, dataset: dict[str, Any]) -> None:
    path = f"/{dataset['id']}/pairs"
    first = await call(tenant, "POST", path, PAIR, 201)
    body = {"pairs": [PAIR, OTHER, {**OTHER, "answer": OTHER["answer"].upper()}, {"question": "?", "answer": "Yes."}]}
    answer = await call(tenant, "POST", f"{path}/bulk", body, 201)
    matches(answer, {**DATASET, "pairs_count": 2, "added": 1})
    second = (await call(tenant, "GET", path))["pairs"][1]["id"]
    assert answer["duplicates"] == [{"index": 0, "duplicate_of": first["id"]}, {"index": 2, "duplicate_of": second}]
    assert [item["index"] for item in answer["rejected"]] == [3]
    assert "question" in answer["rejected"][0]["reason"]
    again = await call(tenant, "POST", f"{path}/bulk", body, 201)
    assert (again["added"], len(again["duplicates"]), again["pairs_count"]) == (0, 3, 2)
    wrong: list[dict[str, Any]] = [{"pairs": []}, {"pairs": [{"question": "Why?"}]}, {}, {"pairs": "x"}]
    for bad in wrong:
        await call(tenant, "POST", f"{path}/bulk", bad, 422)
    key = {"Idempotency-Key": "bulk-1"}
    twice = [
        await tenant.client.post(
            f"/api/datasets{path}/bulk", json={"pairs": [{"question": "New?", "answer": "Yes."}]}, headers=key
        )
        for _ in range(2)
    ]
    assert twice[0].json() == twice[1].json()
    assert (twice[0].json()["added"], twice[1].headers["Idempotent-Replayed"]) == (1, "true")


def many(count: int) -> dict[str, Any]:
    return {"pairs": [{"question": f"What is number {n}?", "answer": f"It is {n * n}." * 20} for n in range(count)]}


async def test_ten_thousand_at_once_and_no_more(tenant: Tenant, dataset: dict[str, Any]) -> None:
    path = f"/{dataset['id']}/pairs/bulk"
    answer = await call(tenant, "POST", path, many(10_000), 201)
    assert (answer["added"], answer["pairs_count"]) == (10_000, 10_000)
    await call(tenant, "POST", path, many(10_001), 422)
    large = await tenant.client.post(f"/api/datasets{path}", content=b" " * (33 * 1024 * 1024))
    assert (large.status_code, large.json()["error_code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_two_bulks_of_the_same_pairs_at_once(tenant: Tenant, dataset: dict[str, Any]) -> None:
    path = f"/{dataset['id']}/pairs/bulk"
    answers = await asyncio.gather(*[call(tenant, "POST", path, many(300), 201) for _ in range(4)])
    assert sorted(answer["added"] for answer in answers) == [0, 0, 0, 300]
    assert sum(len(answer["duplicates"]) for answer in answers) == 900
    assert (await call(tenant, "GET", f"/{dataset['id']}"))["pairs_count"] == 300


async def test_another_tenants(tenant: Tenant, make_tenant: Any, dataset: dict[str, Any]) -> None:
    thief = await make_tenant()
    own = await make(thief, await make_project(thief))
    pair = await call(tenant, "POST", f"/{dataset['id']}/pairs", PAIR, 201)
    for method, path, body in (
        ("GET", "", None),
        ("PUT", "", {"name": "Taken"}),
        ("DELETE", "", None),
        ("GET", "/pairs", None),
        ("POST", "/pairs", OTHER),
        ("POST", "/pairs/bulk", {"pairs": [OTHER]}),
        ("GET", f"/pairs/{pair['id']}", None),
        ("PUT", f"/pairs/{pair['id']}", {"answer": "Taken"}),
        ("DELETE", f"/pairs/{pair['id']}", None),
    ):
        refused = await call(thief, method, f"/{dataset['id']}{path}", body, 404)
        assert refused["error_code"] == "DATASET_NOT_FOUND"
        if "/pairs/" in path and "bulk" not in path:
            assert (await call(thief, method, f"/{own['id']}{path}", body, 404))["error_code"] == "PAIR_NOT_FOUND"
    assert (await call(thief, "GET", "", status=404, project_id=dataset["project_id"]))["error_code"]
    assert [row["id"] for row in await call(thief, "GET", "")] == [own["id"]]
    after = await call(tenant, "GET", f"/{dataset['id']}/pairs")
    assert (after["name"], [found["answer"] for found in after["pairs"]]) == (BODY["name"], [PAIR["answer"]])


async def test_without_a_model_nothing_is_made(
    app: Any, tenant: Tenant, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, content = await upload(tenant, db, await tenant.make_project(), "a.md", SAMPLE)
    monkeypatch.setattr(app.state.services.settings, "llm_base_url", "")
    assert (await make(tenant, project, 503, content_ids=[content]))["error_code"] == "LLM_NOT_CONFIGURED"
    async with db.transaction() as session:
        assert (await session.scalars(select(Dataset).where(Dataset.project_id == project))).all() == []
    await make(tenant, project)


async def test_both_faces_show_one_pair(tenant: Tenant, dataset: dict[str, Any], db: Database) -> None:
    pair = await call(tenant, "POST", f"/{dataset['id']}/pairs", PAIR, 201)
    async with db.transaction() as session:
        row = await session.get_one(Example, pair["id"])
        found = await session.scalar(select(Dataset.project_id).where(Dataset.id == row.dataset_id))
    assert found == dataset["project_id"]
    studio: httpx.Response = await tenant.client.get("/projects")
    project = studio.json()["items"][0]
    examples = (await tenant.client.get(f"/projects/{project['id']}/dataset/examples")).json()
    matches(examples["items"], [{"id": str(row.public_id), "source": "manual", "split": "train", "is_valid": True}])
    assert project["status"] == "dataset_ready"
