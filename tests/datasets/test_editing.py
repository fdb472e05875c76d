"""Correcting, marking, moving, restoring and deleting examples, alone, twice, at once, and as somebody else."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from backend.kit.db import Database
from tests.conftest import Tenant
from tests.datasets.planting import Planted, plant

UNCHANGING = {
    "nothing": {},
    "no data": {"data": {}},
    "the same": {"data": {"instruction": "Question 0?", "output": "Answer 0."}, "is_valid": True, "split": "train"},
    "nulls": {"data": None, "is_valid": None, "split": None},
}
BAD = {
    "an unknown field": {"token_count": 1},
    "an unknown text": {"data": {"instruction": "a", "quote": "b"}},
    "no instruction": {"data": {"instruction": ""}},
    "a blank output": {"data": {"output": " \n "}},
    "a text that is a number": {"data": {"output": 3}},
    "a text too long": {"data": {"output": "a" * 100_001}},
    "an unknown split": {"split": "test"},
    "the preview": {"split": "preview"},
    "no truth value": {"is_valid": "perhaps"},
    "NUL": {"data": {"output": "a\0b"}},
    "a list": [],
}


@pytest.fixture
async def planted(db: Database, tenant: Tenant) -> Planted:
    """Two training examples, a held-out one, an invalid one, a duplicate and a preview."""
    rows: list[dict[str, Any]] = [
        {},
        {},
        {"split": "eval"},
        {"is_valid": False, "invalid_reason": "output_too_short", "output": "No."},
        {"is_valid": False, "invalid_reason": "duplicate", "instruction": "Question 0?", "output": "answer  0."},
        {"split": "preview"},
    ]
    return await plant(db, tenant, rows)


@pytest.mark.parametrize("case", UNCHANGING)
async def test_what_changes_nothing_writes_nothing(planted: Planted, case: str) -> None:
    before = await planted.get(f"/examples/{planted.ids[0]}")
    after = await planted.patch(0, UNCHANGING[case])
    assert after == before == await planted.get(f"/examples/{planted.ids[0]}")
    assert (after["is_edited"], after["original"], after["edited_at"]) == (False, None, None)


@pytest.mark.parametrize("case", BAD)
async def test_bad_changes_are_refused_whole(planted: Planted, case: str) -> None:
    before = await planted.get(f"/examples/{planted.ids[0]}")
    await planted.patch(0, BAD[case], 422)
    assert await planted.get(f"/examples/{planted.ids[0]}") == before


async def test_a_corrected_text(planted: Planted) -> None:
    before = await planted.get(f"/examples/{planted.ids[0]}")
    after = await planted.patch(0, {"data": {"output": "  Another answer, four times as long as it was before.  "}})
    assert after["data"] == {**before["data"], "output": "Another answer, four times as long as it was before."}
    assert (after["is_valid"], after["is_edited"], after["token_count_is_estimate"]) == (True, True, True)
    assert after["token_count"] > 1.5 * before["token_count"]
    assert after["updated_at"] > before["updated_at"]
    assert after["created_at"] == before["created_at"]
    assert after["original"]["output"] == "Answer 0."
    again = await planted.patch(0, {"data": {"output": "A third one."}})
    assert again["original"] == after["original"], "the first one is what is kept"
    restored = await planted.send("POST", f"/examples/{planted.ids[0]}/restore")
    assert {name: restored[name] for name in restored if name != "updated_at"} == {
        name: before[name] for name in before if name != "updated_at"
    }
    twice = await planted.send("POST", f"/examples/{planted.ids[0]}/restore")
    assert twice == restored


async def test_tokens_come_back_with_the_text(planted: Planted) -> None:
    await planted.patch(1, {"data": {"input": "With a context that was not there."}})
    after = await planted.patch(1, {"data": {"input": ""}})
    assert (after["token_count"], after["token_count_is_estimate"], after["is_edited"]) == (11, False, True)


async def test_a_corrected_text_is_valid_unless_a_person_said_no(planted: Planted) -> None:
    after = await planted.patch(3, {"data": {"output": "No, because the glass is blown by hand."}})
    assert (after["is_valid"], after["invalid_reason"]) == (True, None)
    assert after["original"]["invalid_reason"] == "output_too_short"
    marked = await planted.patch(3, {"is_valid": False})
    assert (marked["is_valid"], marked["invalid_reason"]) == (False, "marked_invalid")
    still = await planted.patch(3, {"data": {"output": "Something else again."}})
    assert (still["is_valid"], still["invalid_reason"]) == (False, "marked_invalid")
    restored = await planted.send("POST", f"/examples/{planted.ids[3]}/restore")
    assert (restored["is_valid"], restored["invalid_reason"]) == (False, "output_too_short")
    assert restored["data"]["output"] == "No."


async def test_duplicates_are_told_and_not_refused(planted: Planted) -> None:
    after = await planted.patch(1, {"data": {"instruction": "QUESTION 0?", "output": " Answer 0. "}})
    assert (after["is_valid"], after["invalid_reason"]) == (False, "duplicate")
    assert (await planted.get("/stats"))["validation_errors"] == {"duplicate": 2, "output_too_short": 1}
    before = await planted.get(f"/examples/{planted.ids[4]}")
    assert await planted.patch(4, {"is_valid": True}) == before, "it still is one"
    await planted.send("DELETE", f"/examples/{planted.ids[0]}", status=204)
    assert (await planted.patch(4, {"is_valid": True}))["is_valid"] is True
    restored = await planted.send("POST", f"/examples/{planted.ids[1]}/restore")
    assert (restored["is_valid"], restored["data"]["instruction"]) == (True, "Question 1?")


async def test_a_restored_text_may_be_a_duplicate_by_now(planted: Planted) -> None:
    await planted.patch(0, {"data": {"output": "Other words."}})
    taken = await planted.patch(4, {"is_valid": True})
    assert taken["is_valid"] is True
    restored = await planted.send("POST", f"/examples/{planted.ids[0]}/restore")
    assert (restored["is_valid"], restored["invalid_reason"]) == (False, "duplicate")


async def test_a_preview_can_be_corrected_and_belongs_to_no_split(planted: Planted) -> None:
    after = await planted.patch(5, {"data": {"instruction": "Question 0?", "output": "Answer 0."}})
    assert (after["is_valid"], after["split"]) == (True, "preview"), "a sample is nobody's duplicate"
    refused = await planted.patch(5, {"split": "train"}, 400)
    assert refused["error_code"] == "PREVIEW_HAS_NO_SPLIT"
    assert "/dataset/generate" in refused["detail"]


async def test_moving_to_the_other_split(planted: Planted) -> None:
    after = await planted.patch(0, {"split": "eval"})
    assert (after["split"], after["is_edited"], after["original"]) == ("eval", False, None)
    found = (await planted.get("/stats"))["by_split"]
    assert (found["train"]["count"], found["eval"]["count"]) == (1, 2)


async def test_marking_many(planted: Planted) -> None:
    wanted = [*planted.ids[:4], planted.ids[0]]
    body = {"ids": wanted, "is_valid": False}
    assert await planted.send("PATCH", "/examples", body) == {"updated": 3, "duplicates": []}
    assert await planted.send("PATCH", "/examples", body) == {"updated": 0, "duplicates": []}
    assert (await planted.get("/stats"))["validation_errors"] == {
        "duplicate": 1, "marked_invalid": 3, "output_too_short": 1,
    }  # fmt: skip
    marked = await planted.send("PATCH", "/examples", {"ids": planted.ids, "is_valid": True})
    assert marked == {"updated": 4, "duplicates": [planted.ids[4]]}, "the first of two that say the same is taken"
    one = await planted.get(f"/examples/{planted.ids[0]}")
    assert (one["is_valid"], one["is_edited"], one["original"]["is_valid"]) == (True, True, True)
    kept = await planted.get(f"/examples/{planted.ids[3]}")
    assert kept["original"]["invalid_reason"] == "output_too_short"


async def test_marking_many_all_or_none(planted: Planted, make_tenant: Any, db: Database) -> None:
    other = await plant(db, await make_tenant(), [{}])
    for foreign in (other.ids[0], str(uuid4())):
        body = {"ids": [planted.ids[0], foreign], "is_valid": False}
        refused = await planted.send("PATCH", "/examples", body, 404)
        assert refused["error_code"] == "EXAMPLE_NOT_FOUND"
    assert (await planted.get(f"/examples/{planted.ids[0]}"))["is_valid"] is True
    assert (await other.get(f"/examples/{other.ids[0]}"))["is_valid"] is True
    for bad in ([], [str(uuid4())] * 1001, ["x"], None):
        await planted.send("PATCH", "/examples", {"ids": bad, "is_valid": True}, 422)
    await planted.send("PATCH", "/examples", {"ids": planted.ids, "is_valid": True, "split": "eval"}, 422)


async def test_corrections_at_once_keep_the_first_text(planted: Planted) -> None:
    bodies = [{"data": {"output": f"Correction {number}."}} for number in range(8)]
    bodies += [{"is_valid": False}, {"split": "eval"}]
    answers = await asyncio.gather(*[planted.patch(0, body) for body in bodies])
    assert {answer["original"]["output"] for answer in answers if answer["original"]} == {"Answer 0."}
    restored = await planted.send("POST", f"/examples/{planted.ids[0]}/restore")
    assert (restored["data"]["output"], restored["is_valid"], restored["token_count"]) == ("Answer 0.", True, 10)


async def test_two_become_the_same_at_once(planted: Planted) -> None:
    """One of them is the duplicate, whoever comes first."""
    body = {"data": {"instruction": "Both?", "output": "Both."}}
    answers = await asyncio.gather(planted.patch(0, body), planted.patch(1, body))
    assert sorted(answer["is_valid"] for answer in answers) == [False, True]


async def test_deleted_once(planted: Planted) -> None:
    path = f"{planted.path}/examples/{planted.ids[0]}"
    requests = [planted.tenant.client.delete(path) for _ in range(4)]
    requests += [
        planted.tenant.client.patch(path, json={"is_valid": False}),
        planted.tenant.client.post(path + "/restore"),
    ]
    answers = [answer.status_code for answer in await asyncio.gather(*requests)]
    assert answers[:4].count(204) == 1
    assert set(answers) <= {200, 204, 404}
    await planted.get(f"/examples/{planted.ids[0]}", 404)
    await planted.patch(0, {"is_valid": True}, 404)
    await planted.send("POST", f"/examples/{planted.ids[0]}/restore", status=404)


async def test_nobody_elses_example(planted: Planted, make_tenant: Any, db: Database) -> None:
    thief = await plant(db, await make_tenant(), [{}])
    for project in (planted.project, thief.project):
        for method, rest, body in (
            ("GET", "", None),
            ("PATCH", "", {"is_valid": False}),
            ("POST", "/restore", None),
            ("DELETE", "", None),
        ):
            path = f"/projects/{project}/dataset/examples/{planted.ids[0]}{rest}"
            answer = await thief.tenant.client.request(method, path, json=body)
            assert answer.status_code == 404, (method, path)
    assert (await planted.get(f"/examples/{planted.ids[0]}"))["is_valid"] is True
