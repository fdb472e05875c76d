"""The import job: what becomes of the rows of an uploaded file, also when others write and workers die meanwhile."""

import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import func, select, update

from backend.contents.models import Content
from backend.contents.records.row import Row
from backend.datasets.carrying import carry_over, rescue
from backend.datasets.fingerprints import fingerprint
from backend.datasets.models import Dataset, Example
from backend.datasets.row_splitting import RowSplit
from backend.jobs.models import Job
from backend.kit.db import Database
from tests.conftest import Tenant
from tests.datasets.planting import plant

RunJobs = Callable[[str], Awaitable[dict[str, Any]]]
RUN_TASK = """
import sys
from celery_app.app import app
app.loader.import_default_modules()
app.tasks["dataset_import"].run(int(sys.argv[1]))
"""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def questions(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"instruction": f"What does lamp {number} weigh?", "input": "", "output": f"Lamp {number} weighs {number} g."}
        for number in range(start, start + count)
    ]


async def upload(tenant: Tenant, project: str, content: bytes, name: str = "rows.jsonl", **fields: str) -> Any:
    answer = await tenant.client.post(
        f"/projects/{project}/files/upload",
        files=[("files", (name, content))],
        data={"kind": "dataset_upload", **fields},
    )
    assert answer.status_code == 201, answer.text
    return answer.json()["files"][0]


async def examples(tenant: Tenant, project: str, **query: Any) -> list[dict[str, Any]]:
    answer = await tenant.client.get(f"/projects/{project}/dataset/examples", params={"limit": 500, **query})
    return list(answer.json()["items"])


async def stats(tenant: Tenant, project: str) -> dict[str, Any]:
    return dict((await tenant.client.get(f"/projects/{project}/dataset/stats")).json())


async def test_rows_become_examples(tenant: Tenant, run_jobs: RunJobs) -> None:
    project = await tenant.make_project(config={"train_eval_split": 0.8})
    rows = [*questions(20), {"instruction": "Bad row"}, {"instruction": "Dots?", "output": "..."}]
    file = await upload(tenant, project, lines(rows))
    assert (await tenant.client.get(f"/projects/{project}")).json()["status"] == "ready"
    job = await run_jobs(file["import_job_id"])
    assert job["state"] == "success", job["error_message"]
    assert job["result"] == {
        "rows": 21,
        "imported": 21,
        "valid": 20,
        "train": 16,
        "eval": 4,
        "invalid": {"output_too_short": 1},
    }
    assert (await tenant.client.get(f"/projects/{project}")).json()["status"] == "dataset_ready"
    found = await stats(tenant, project)
    assert (found["total"], found["valid"], found["invalid"]) == (21, 20, 1)
    assert found["validation_errors"] == {"output_too_short": 1}
    item = (await examples(tenant, project))[0]
    assert item["data"]["instruction"] == "What does lamp 0 weigh?"
    assert item["metadata"] == {"line": 1, "file": "rows.jsonl"}
    assert 5 < item["token_count"] < 40
    listed = (await tenant.client.get(f"/projects/{project}/files")).json()["files"][0]
    assert listed["import"]["imported"] == 21
    assert listed["import"]["errors"][0] | {"message": ""} == {"line": 21, "code": "missing_field", "message": ""}


async def test_a_conversation_keeps_its_turns(tenant: Tenant, run_jobs: RunJobs, db: Database) -> None:
    project = await tenant.make_project()
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a ferrule?"},
        {"role": "assistant", "content": "A metal ring."},
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "At the tip."},
    ]
    file = await upload(tenant, project, lines([{"messages": turns}, *questions(3)]))
    assert (await run_jobs(file["import_job_id"]))["state"] == "success"
    async with db.transaction() as session:
        row = (
            await session.scalars(
                select(Example).join(Content).where(Content.public_id == file["id"], Example.history.is_not(None))
            )
        ).one()
    assert row.history == turns[:3]
    assert (row.instruction, row.output, row.source) == ("Where is it?", "At the tip.", "imported")
    assert row.token_count > 15


@pytest.mark.parametrize("split", ["train", "eval"])
async def test_the_split_may_be_named(tenant: Tenant, run_jobs: RunJobs, split: str) -> None:
    project = await tenant.make_project()
    file = await upload(tenant, project, lines(questions(5)), split=split)
    assert (await run_jobs(file["import_job_id"]))["result"][split] == 5


async def test_the_same_file_twice_is_all_duplicates(tenant: Tenant, run_jobs: RunJobs) -> None:
    project = await tenant.make_project()
    first, second = [await upload(tenant, project, lines(questions(30))) for _ in range(2)]
    for file, valid in ((first, 30), (second, 0)):
        job = await run_jobs(file["import_job_id"])
        assert job["result"]["valid"] == valid
    assert job["result"]["invalid"] == {"duplicate": 30}
    before = await stats(tenant, project)
    assert (before["valid"], before["validation_errors"]) == (30, {"duplicate": 30})
    # Without the first file the second one's rows are no duplicates any more, on the side that they had.
    assert (await tenant.client.delete(f"/projects/{project}/files/{first['id']}")).status_code == 204
    after = await stats(tenant, project)
    assert (after["valid"], after["invalid"]) == (30, 0)
    assert after["by_split"] == before["by_split"]


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ({"is_valid": False, "invalid_reason": "not_grounded"}, {}),
        ({"is_valid": False, "invalid_reason": "marked_invalid"}, {"duplicate": 1}),
        ({}, {"duplicate": 1}),
    ],
)
async def test_only_what_counts_or_a_person_refused_makes_a_duplicate(
    tenant: Tenant, db: Database, run_jobs: RunJobs, refused: dict[str, Any], expected: dict[str, int]
) -> None:
    planted = await plant(db, tenant, [{}, {"instruction": "Who lit it?", "output": "Ada did.", **refused}])
    file = await upload(tenant, planted.project, lines([{"instruction": "who lit it?", "output": "Ada did."}]))
    job = await run_jobs(file["import_job_id"])
    assert (job["state"], job["result"]["invalid"]) == ("success", expected)


async def test_two_imports_at_the_same_time(tenant: Tenant, db: Database, run_jobs: RunJobs) -> None:
    """Two worker processes, one project without a dataset, two files with the same rows in another order."""
    project = await tenant.make_project()
    rows = questions(2500)
    files = [await upload(tenant, project, lines(rows)), await upload(tenant, project, lines(rows[::-1]))]
    workers = []
    for file in files:
        async with db.transaction() as session:
            job_id = (await session.scalars(select(Job.id).where(Job.public_id == file["import_job_id"]))).one()
        workers.append(await asyncio.create_subprocess_exec(sys.executable, "-c", RUN_TASK, str(job_id)))
    assert [await worker.wait() for worker in workers] == [0, 0]
    found = await stats(tenant, project)
    assert (found["total"], found["valid"], found["validation_errors"]) == (5000, 2500, {"duplicate": 2500})
    async with db.transaction() as session:
        jobs = await session.scalars(
            select(Job.state).where(Job.public_id.in_([file["import_job_id"] for file in files]))
        )
        assert jobs.all() == ["success", "success"]
        datasets = select(func.count(func.distinct(Example.dataset_id))).join(Content)
        where = Content.public_id.in_([file["id"] for file in files])
        assert await session.scalar(datasets.where(where)) == 1


async def test_a_killed_worker_doubles_nothing(tenant: Tenant, db: Database, run_jobs: RunJobs) -> None:
    project = await tenant.make_project()
    file = await upload(tenant, project, lines(questions(20_000)))
    async with db.transaction() as session:
        job_id = (await session.scalars(select(Job.id).where(Job.public_id == file["import_job_id"]))).one()
        content_id = (await session.scalars(select(Content.id).where(Content.public_id == file["id"]))).one()

    async def imported() -> int:
        async with db.transaction() as session:
            counted = select(func.count()).where(Example.content_id == content_id)
            return int(await session.scalar(counted) or 0)

    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", RUN_TASK, str(job_id))
    try:
        while await imported() < 2_000:
            assert worker.returncode is None
            await asyncio.sleep(0.02)
    finally:
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
    await asyncio.sleep(0.5)
    kept = await imported()
    assert 2_000 <= kept < 20_000
    async with db.transaction() as session:
        await session.execute(update(Job).where(Job.id == job_id).values(state="queued", lease_until=None))
    job = await run_jobs(file["import_job_id"])
    assert (job["state"], job["attempts"]) == ("success", 2)
    assert (job["result"]["imported"], job["result"]["valid"], job["result"]["eval"]) == (20_000, 20_000, 2_000)
    async with db.transaction() as session:
        places = await session.scalars(
            select(Example.meta["line"].as_integer()).where(Example.content_id == content_id)
        )
        assert sorted(places.all()) == list(range(1, 20_001))


async def test_ten_thousand_rows_take_seconds(tenant: Tenant, run_jobs: RunJobs) -> None:
    project = await tenant.make_project()
    rows = [{**row, "output": "The lamp is described at length. " * 6 + row["output"]} for row in questions(10_000)]
    file = await upload(tenant, project, lines(rows))
    started = time.monotonic()
    assert (await run_jobs(file["import_job_id"]))["result"]["valid"] == 10_000
    # Three seconds, measured with both cores busy; the bound allows for a machine that does more.
    assert time.monotonic() - started < 20


async def test_a_file_that_goes_away_takes_its_examples_along(tenant: Tenant, run_jobs: RunJobs, db: Database) -> None:
    project = await tenant.make_project()
    queued = await upload(tenant, project, lines(questions(3)))
    assert (await tenant.client.delete(f"/projects/{project}/files/{queued['id']}")).status_code == 204
    job = await run_jobs(queued["import_job_id"])
    assert (job["state"], job["result"]["imported"]) == ("success", 0)
    assert (await tenant.client.get(f"/projects/{project}")).json()["status"] == "draft"

    file = await upload(tenant, project, lines(questions(5)))
    other = await upload(tenant, project, lines(questions(5, start=100)))
    for each in (file, other):
        await run_jobs(each["import_job_id"])
    assert (await tenant.client.delete(f"/projects/{project}/files/{file['id']}")).status_code == 204
    left = await examples(tenant, project)
    assert [item["metadata"]["line"] for item in left] == [1, 2, 3, 4, 5]
    assert "lamp 100" in left[0]["data"]["instruction"]
    assert (await tenant.client.delete(f"/projects/{project}/files/{other['id']}")).status_code == 204
    assert (await tenant.client.get(f"/projects/{project}")).json()["status"] == "draft"


async def test_what_is_close_to_a_reference_is_refused(tenant: Tenant, run_jobs: RunJobs) -> None:
    project = await tenant.make_project()
    reference = await upload(tenant, project, lines(questions(2)), "exam.jsonl", purpose="reference")
    assert (reference["purpose"], reference["import_job_id"]) == ("reference", None)
    file = await upload(tenant, project, lines(questions(10)))
    job = await run_jobs(file["import_job_id"])
    assert (job["result"]["valid"], job["result"]["invalid"]) == (8, {"contaminated": 2})
    refused = await examples(tenant, project, is_valid="false")
    assert {item["metadata"]["contaminated_by"]["file"] for item in refused} == {"exam.jsonl"}


async def _project_id(db: Database, file: dict[str, Any]) -> int:
    async with db.transaction() as session:
        return (await session.scalars(select(Content.project_id).where(Content.public_id == file["id"]))).one()


async def test_a_generation_takes_imported_examples_along(tenant: Tenant, run_jobs: RunJobs, db: Database) -> None:
    project = await tenant.make_project()
    file = await upload(tenant, project, lines(questions(12)))
    twin = await upload(tenant, project, lines(questions(2)))
    for each in (file, twin):
        await run_jobs(each["import_job_id"])
    project_id = await _project_id(db, file)
    async with db.transaction() as session:
        old = (await session.scalars(select(Dataset).where(Dataset.project_id == project_id))).one()
        new = Dataset(project_id=project_id, name="second", status="processing")
        session.add(new)
        await session.flush()
        assert await carry_over(session, old, new) == 14
        assert await carry_over(session, old, new) == 0
    found = await stats(tenant, project)
    assert (found["valid"], found["validation_errors"]) == (12, {"duplicate": 2})
    # An import in the middle of it writes into the new one; when that fails, nothing is lost.
    late = await upload(tenant, project, lines(questions(3, start=50)))
    assert (await run_jobs(late["import_job_id"]))["state"] == "success"
    async with db.transaction() as session:
        failed = await session.get_one(Dataset, new.id)
        failed.status = "error"
        assert await rescue(session, failed) == 3
    found = await stats(tenant, project)
    assert (found["valid"], found["invalid"]) == (15, 2)


async def test_an_import_during_a_generation_that_fails_first(tenant: Tenant, run_jobs: RunJobs, db: Database) -> None:
    """There is no other dataset to go to: the rows get one of their own."""
    project = await tenant.make_project()
    file = await upload(tenant, project, lines(questions(4)))
    project_id = await _project_id(db, file)
    async with db.transaction() as session:
        dataset = Dataset(project_id=project_id, name="first", status="processing")
        session.add(dataset)
        await session.flush()
        owner = (await session.scalars(select(Job.user_id).where(Job.project_id == project_id))).first()
        session.add(
            Job(
                user_id=owner,
                project_id=project_id,
                kind="dataset_generate",
                queue="llm",
                max_attempts=1,
                state="running",
                params={"dataset_id": dataset.id},
            )
        )
    assert (await run_jobs(file["import_job_id"]))["state"] == "success"
    async with db.transaction() as session:
        row = await session.get_one(Dataset, dataset.id)
        assert row.status == "processing"
        row.status = "error"
        assert await rescue(session, row) == 4
    assert (await stats(tenant, project))["valid"] == 4


def _sides(rows: list[Row], share: float, pins: list[tuple[Row, str]] | None = None) -> list[str]:
    split = RowSplit(share)
    for row in rows:
        split.add(row, fingerprint(row.instruction, row.input, row.output, row.history), counts=True)
    for row, side in pins or []:
        split.pin(row, fingerprint(row.instruction, row.input, row.output), side, is_own=False)
    split.decide()
    return [split.side(row) for row in rows]


@pytest.mark.parametrize("count", [20, 21, 37, 100, 1000])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_the_held_out_share_is_met(count: int, share: float) -> None:
    rows = [Row(number, f"Question {number}?", "", f"Answer {number}") for number in range(count)]
    sides = _sides(rows, share)
    assert sides.count("eval") == round(count * (1 - share))
    shuffled = random.Random(3).sample(rows, count)
    again = _sides(shuffled, share)
    assert {row.line: side for row, side in zip(shuffled, again, strict=True)} == {
        row.line: side for row, side in zip(rows, sides, strict=True)
    }


def test_rows_that_ask_the_same_stay_together() -> None:
    rows = [Row(number, f"  Question {number % 30}? ".upper(), "", f"Answer {number}") for number in range(90)]
    by_question = defaultdict(set)
    for row, side in zip(rows, _sides(rows, 0.8), strict=True):
        by_question[row.instruction].add(side)
    assert all(len(sides) == 1 for sides in by_question.values())
    assert Counter(_sides(rows, 0.8))["eval"] == 18


def test_turns_of_one_conversation_stay_together() -> None:
    rows = []
    for number in range(40):
        asked = {"role": "user", "content": f"Question {number}?"}
        answered = {"role": "assistant", "content": f"Answer {number}"}
        rows.append(Row(len(rows), asked["content"], "", answered["content"]))
        rows.append(Row(len(rows), f"And then {number}?", "", "More.", [asked, answered]))
    sides = _sides(rows, 0.8)
    assert sides[0::2] == sides[1::2]
    assert sides.count("eval") == 16


def test_one_instruction_for_many_inputs_is_divided_by_the_inputs() -> None:
    rows = [Row(number, "Summarise this text.", f"Text {number // 2}", f"Short {number}") for number in range(60)]
    sides = _sides(rows, 0.9)
    assert sides.count("eval") == 6
    assert sides[0::2] == sides[1::2]


def test_rows_follow_what_the_dataset_has() -> None:
    rows = [Row(number, f"Question {number}?", "", f"Answer {number}") for number in range(40)]
    pins = [(Row(0, f"question {number}?", "", "Another answer"), "train") for number in range(20)]
    pins.append((Row(0, "Question 39?", "", "Another answer"), "eval"))
    sides = _sides(rows, 0.9, pins)
    assert sides[:20] == ["train"] * 20
    assert sides[39] == "eval"
    assert sides.count("eval") == 4
