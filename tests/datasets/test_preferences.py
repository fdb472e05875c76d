"""Rated answers: brought in, edited and given over HTTP; in lists, counts, exports and frozen versions."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select, update

from backend.datasets import exporting, stats, versions
from backend.datasets.models import Dataset, DatasetVersion, Example, RetiredExample
from backend.kit.db import Database
from tests.conftest import Tenant
from tests.datasets.planting import Planted, plant
from tests.datasets.test_importing import examples, lines, upload

RunJobs = Callable[[str], Awaitable[dict[str, Any]]]


@pytest.fixture
async def planted(db: Database, tenant: Tenant) -> Planted:
    return await plant(db, tenant, [{}, {}, {"split": "eval"}, {"rejected": "Worse 3."}, {"input": "The text."}])


async def rows_of(db: Database, planted: Planted) -> list[Example]:
    async with db.transaction() as session:
        mine = Example.dataset_id == planted.dataset_id
        return list((await session.scalars(select(Example).where(mine).order_by(Example.id))).all())


async def freeze(db: Database, planted: Planted) -> DatasetVersion:
    async with db.transaction() as session:
        return (await versions.freeze(session, planted.dataset_id))[0]


async def verify(db: Database, version: DatasetVersion) -> bool:
    async with db.transaction() as session:
        return await versions.verify(session, version)


async def test_an_imported_rating_is_in_lists_counts_and_exports(tenant: Tenant, run_jobs: RunJobs) -> None:
    project = await tenant.make_project(config={"train_eval_split": 0.8})
    rated = [{"prompt": f"How bright is lamp {n}?", "chosen": f"{n} lumens.", "rejected": "Very."} for n in range(10)]
    again = {**rated[0], "rejected": "It is red."}
    bad = [{**rated[1], "rejected": rated[1]["chosen"]}, {**rated[1], "rejected": ""}]
    file = await upload(
        tenant, project, lines([*rated, again, rated[2], {"question": "Plain?", "answer": "Yes."}, *bad])
    )
    assert file["import"]["shape"] == "preference"
    assert file["import"]["error_counts"] == {"same_answers": 1, "empty_field": 1}
    job = await run_jobs(file["import_job_id"])
    # The same answer may be better than two others; what repeats both is a duplicate.
    assert (job["result"]["valid"], job["result"]["invalid"]) == (12, {"duplicate": 1})
    items = await examples(tenant, project, is_valid=True)
    assert items[0]["data"] == {
        "instruction": "How bright is lamp 0?",
        "input": "",
        "output": "0 lumens.",
        "rejected": "Very.",
    }
    assert "rejected" not in items[-1]["data"]
    found = (await tenant.client.get(f"/projects/{project}/dataset/stats")).json()["by_split"]
    assert found["train"]["preferences"] + found["eval"]["preferences"] == 11
    assert found["eval"]["preferences"] > 0
    export = f"/projects/{project}/dataset/export"
    kept = [json.loads(line) for line in (await tenant.client.get(export)).text.splitlines()]
    assert [row.get("rejected") for row in kept].count(None) == 1
    pairs = [
        json.loads(line)
        for line in (await tenant.client.get(export, params={"format": "preference"})).text.splitlines()
    ]
    assert pairs[0] == rated[0]
    assert len(pairs) == 11
    table = (await tenant.client.get(export, params={"format": "csv"})).text
    # What left comes back as it was, whichever way it took.
    for content, name in ((lines(kept), "again.jsonl"), (lines(pairs), "pairs.jsonl"), (table.encode(), "again.csv")):
        other = await tenant.make_project()
        job = await run_jobs((await upload(tenant, other, content, name))["import_job_id"])
        assert job["result"]["valid"] >= 11, job
        back = {(item["data"]["instruction"], item["data"].get("rejected")) for item in await examples(tenant, other)}
        assert back >= {(row["prompt"], row["rejected"]) for row in pairs}


async def test_edited_on_both_faces(planted: Planted, tenant: Tenant) -> None:
    changed = await planted.patch(0, {"data": {"rejected": " Worse. "}})
    assert changed["data"]["rejected"] == "Worse."
    assert (changed["is_edited"], changed["token_count"]) == (True, 10), "its tokens are those of question and answer"
    assert changed["original"]["rejected"] is None
    assert (await planted.get("/examples"))["stats"]["preferences"] == 2
    kept = await planted.patch(0, {"data": {"output": "Better."}})
    assert kept["data"]["rejected"] == "Worse."
    refused = await planted.patch(0, {"data": {"output": "Worse."}}, 400)
    assert refused["error_code"] == "SAME_ANSWERS"
    assert "rejected" not in (await planted.patch(0, {"data": {"rejected": None}}))["data"]
    await planted.patch(0, {"data": {"rejected": "Again worse."}})
    restored = await planted.send("POST", f"/examples/{planted.ids[0]}/restore")
    assert restored["data"] == {"instruction": "Question 0?", "input": "", "output": "Answer 0."}
    await planted.patch(0, {"data": {"rejected": " "}}, 422)

    path = f"/api/datasets/{planted.dataset_id}/pairs"
    added = await tenant.client.post(path, json={"question": "Why?", "answer": "So.", "rejected": "No."})
    assert (added.status_code, added.json()["rejected"]) == (201, "No.")
    one = f"{path}/{added.json()['id']}"
    assert (await tenant.client.put(one, json={"answer": "Therefore."})).json()["rejected"] == "No."
    same = await tenant.client.put(one, json={"rejected": "Therefore."})
    assert (same.status_code, same.json()["error_code"]) == (400, "PAIR_REFUSED")
    assert (await tenant.client.put(one, json={"rejected": None})).json()["rejected"] is None
    bulk = [{"question": "Q", "answer": "A", "rejected": worse} for worse in ("B", "A", "?!", "B", "C")]
    found = (await tenant.client.post(f"{path}/bulk", json={"pairs": bulk})).json()
    assert (found["added"], found["preferences_count"]) == (2, 3)
    assert [item["index"] for item in found["rejected"]] == [1, 2]
    assert [item["index"] for item in found["duplicates"]] == [3]


@pytest.mark.parametrize("face", ["studio", "platform"])
async def test_a_rating(planted: Planted, tenant: Tenant, db: Database, make_tenant: Any, face: str) -> None:
    path = f"{planted.path}/preferences" if face == "studio" else f"/api/datasets/{planted.dataset_id}/preferences"

    async def rate(prompt: Any, preferred: str, rejected: str, status: int = 201) -> Any:
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
        answer = await tenant.client.post(path, json={**asked, "preferred": preferred, "rejected": rejected})
        assert answer.status_code == status, answer.text
        return answer.json()

    # The dataset's own example gets the rejected answer, whatever case it is written in; the second time it is known.
    first = await rate("question 1?", "Answer 1.", "No idea.")
    assert await rate("question 1?", "Answer 1.", "No idea.", 200) == first
    await rate("Question 4?\n\nThe text.", "Answer 4.", "No idea.")
    rows = await rows_of(db, planted)
    assert len(rows) == 5
    assert [row.rejected for row in rows] == [None, "No idea.", None, "Worse 3.", "No idea."]
    # Another answer that is worse makes another example; the other way round, the last word counts.
    await rate("Question 1?", "Answer 1.", "Nothing.")
    await rate("Question 1?", "Nothing.", "Answer 1.")
    # A held-out question stays held out; a new one is trained on.
    await rate("Question 2?", "Another answer.", "Answer 2.")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "New?"}]
    new = await rate(turns, "Yes.", "No, old.")
    assert await rate(turns, "Yes.", "No, old.", 200) == new
    rows = (await rows_of(db, planted))[5:]
    assert [(row.output, row.rejected, row.split, row.source) for row in rows] == [
        ("Nothing.", "Answer 1.", "train", "manual"),
        ("Another answer.", "Answer 2.", "eval", "manual"),
        ("Yes.", "No, old.", "train", "manual"),
    ]
    assert rows[2].history == turns[:1]
    assert rows[2].token_count > 0
    assert (await rate("Why?", "Same.", " Same.", 400))["error_code"] == "SAME_ANSWERS"
    assert (await rate("Why?", "...", "No.", 400))["error_code"] == "PAIR_REFUSED"
    for messages in ([], turns[:1], [*turns, {"role": "user", "content": "x"}], [turns[1], turns[0]]):
        await rate(messages, "a", "b", 422)
    both = {"prompt": "x", "messages": turns, "preferred": "a", "rejected": "b"}
    assert (await tenant.client.post(path, json=both)).status_code == 422
    thief = await make_tenant()
    stolen = await thief.client.post(path, json={"prompt": "Why?", "preferred": "a", "rejected": "b"})
    assert stolen.status_code == 404
    async with db.transaction() as session:
        found = await stats.of(session, await session.get_one(Dataset, planted.dataset_id))
    assert found.preferences == 6


async def test_the_last_word_counts_whatever_else_the_dataset_says(
    planted: Planted, tenant: Tenant, db: Database
) -> None:
    async def rate(preferred: str, rejected: str) -> int:
        body = {"prompt": "Question 0?", "preferred": preferred, "rejected": rejected}
        return (await tenant.client.post(f"{planted.path}/preferences", json=body)).status_code

    # The dataset's own answer is known without a rating: that must not keep the contrary alive.
    assert [await rate("Better.", "Answer 0."), await rate("Answer 0.", "Better.")] == [201, 201]
    # Answers that differ in case alone have one fingerprint, whichever is preferred.
    assert [await rate("Paris", "paris"), await rate("paris", "Paris"), await rate("paris", "Paris")] == [201, 201, 200]
    rows = [row for row in await rows_of(db, planted) if row.instruction == "Question 0?"]
    assert [(row.output, row.rejected, row.is_valid) for row in rows] == [
        ("Answer 0.", None, True),
        ("Answer 0.", "Better.", True),
        ("paris", "Paris", True),
    ]


async def test_a_held_out_question_stays_held_out_however_it_is_divided(tenant: Tenant, db: Database) -> None:
    planted = await plant(db, tenant, [{"split": "eval", "instruction": "Sum it up.", "input": "A text."}, {}])
    question = "sum it up.\n\nA text."
    rated = {"prompt": question, "preferred": "Better.", "rejected": "Answer 0."}
    assert (await tenant.client.post(f"{planted.path}/preferences", json=rated)).status_code == 201
    pairs = f"/api/datasets/{planted.dataset_id}/pairs"
    assert (await tenant.client.post(pairs, json={"question": question, "answer": "Third."})).status_code == 201
    assert [row.split for row in await rows_of(db, planted)] == ["eval", "train", "eval", "eval"]


async def test_a_dataset_of_a_launch_whose_examples_have_a_system_prompt(tenant: Tenant, db: Database) -> None:
    planted = await plant(db, tenant, [{}, {}])
    system = {"role": "system", "content": "You know lamps."}
    async with db.transaction() as session:
        # As a launch does it: what makes an example a duplicate is known by then.
        await session.execute(update(Example).values(history=[system]))

    async def rate(number: int, *turns: dict[str, str]) -> int:
        asked = [*turns, {"role": "user", "content": f"Question {number}?"}]
        body = {"messages": asked, "preferred": f"Answer {number}.", "rejected": "Worse."}
        return (await tenant.client.post(f"{planted.path}/preferences", json=body)).status_code

    # With the prompt that a test of the model has by default, and without: the example is the same.
    assert [await rate(0), await rate(0), await rate(0, system)] == [201, 200, 200]
    assert [await rate(1, system), await rate(1, system), await rate(1)] == [201, 200, 200]
    assert [row.rejected for row in await rows_of(db, planted)] == ["Worse.", "Worse."]
    # Another prompt makes another conversation.
    assert await rate(1, {**system, "content": "Be brief."}) == 201
    assert len(await rows_of(db, planted)) == 3


async def test_an_empty_turn_is_refused(planted: Planted, tenant: Tenant) -> None:
    turns = [{"role": "system", "content": " \n"}, {"role": "user", "content": "Why?"}]
    body = {"messages": turns, "preferred": "a", "rejected": "b"}
    answer = await tenant.client.post(f"{planted.path}/preferences", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (422, "VALIDATION_ERROR")


async def test_a_project_without_a_dataset(tenant: Tenant) -> None:
    path = f"/projects/{await tenant.make_project()}/dataset/preferences"
    answer = await tenant.client.post(path, json={"prompt": "Why?", "preferred": "a", "rejected": "b"})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "NO_DATASET")


async def test_frozen_versions_hold_what_was_rated(planted: Planted, db: Database) -> None:
    first = await freeze(db, planted)
    await planted.patch(3, {"data": {"rejected": "Even worse."}})
    await planted.patch(0, {"data": {"rejected": "Worse 0."}})
    second = await freeze(db, planted)
    assert second.sha256 != first.sha256
    await planted.patch(3, {"data": {"rejected": None}})
    third = await freeze(db, planted)
    assert [await verify(db, version) for version in (first, second, third)] == [True] * 3
    read = []
    for version in (first, second, third):
        batches = exporting.rows(db.transaction, planted.dataset_id, split="all", version=version.number)
        read.append([row.rejected async for batch in batches for row in batch])
    assert read == [
        [None, None, None, "Worse 3.", None],
        ["Worse 0.", None, None, "Even worse.", None],
        ["Worse 0.", None, None, None, None],
    ]
    async with db.transaction() as session:
        counts = [await versions.count_preferences(session, version) for version in (first, second, third)]
        retired = (await session.scalars(select(RetiredExample.rejected).order_by(RetiredExample.example_id))).all()
    assert counts == [{"train": 1, "eval": 0}, {"train": 2, "eval": 0}, {"train": 1, "eval": 0}]
    assert {"Worse 3.", "Even worse."} <= set(retired)
    await planted.patch(0, {"data": {"rejected": None}})
    await planted.patch(3, {"data": {"rejected": "Worse 3."}})
    assert (await freeze(db, planted)).sha256 == first.sha256, "the same texts"


async def test_the_digest_of_examples_without_ratings_is_what_it_was(db: Database, tenant: Tenant) -> None:
    """Written down when examples had no rejected answers."""
    planted = await plant(db, tenant, [{}, {"split": "eval", "input": "Hé"}])
    assert (await freeze(db, planted)).sha256 == _DIGEST


_DIGEST = "ca99cbed1b7e19766bbc65145fc233b00d31297972a2b348a3faaaafc83a3f39"
