"""Counts that are kept: right after every kind of change, and not counted anew without one."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, event, select, text, update

from backend.datasets import stats
from backend.datasets.models import Dataset, Example
from backend.kit.db import Database
from tests.conftest import Tenant
from tests.datasets.planting import Planted, example, plant


@pytest.fixture
async def planted(db: Database, tenant: Tenant) -> Planted:
    rows: list[dict[str, Any]] = [{}, {"token_count": 45}, {"split": "eval", "token_count": 20, "source": "imported"}]
    rows += [
        {"is_valid": False, "invalid_reason": reason} for reason in ("json_invalid", "duplicate", "duplicate", None)
    ]
    return await plant(db, tenant, [*rows, {"split": "preview"}])


class Scans:
    """Counts the statements that go through all examples of a dataset."""

    def __init__(self, db: Database) -> None:
        self.count = 0
        self._engine = db.engine.sync_engine

    def __enter__(self) -> "Scans":
        event.listen(self._engine, "before_cursor_execute", self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._seen)

    def _seen(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self.count += "FROM examples" in statement and "count(*)" in statement


async def test_by_the_contract(planted: Planted) -> None:
    assert await planted.get("/stats") == {
        "total": 7,
        "valid": 3,
        "invalid": 4,
        "by_split": {
            "train": {"count": 2, "avg_tokens": 28, "min_tokens": 10, "max_tokens": 45, "preferences": 0},
            "eval": {"count": 1, "avg_tokens": 20, "min_tokens": 20, "max_tokens": 20, "preferences": 0},
        },
        "validation_errors": {"duplicate": 2, "json_invalid": 1, "invalid": 1},
        "leakage": None,
        "report": None,
    }
    page = await planted.get("/examples", limit=1)
    assert page["stats"] == {
        "total": 7, "valid": 3, "invalid": 4, "train": 2, "eval": 1, "preview": 1, "avg_token_count": 25,
        "preferences": 0,
    }  # fmt: skip


async def test_what_the_generation_found_is_shown(planted: Planted, db: Database) -> None:
    report = {"leakage": {"eval_close_to_train": 0}, "decontaminated": 3}
    async with db.transaction() as session:
        await session.execute(update(Dataset).where(Dataset.id == planted.dataset_id).values(report=report))
    found = await planted.get("/stats")
    assert (found["leakage"], found["report"]) == (report["leakage"], report)


async def test_of_no_dataset(tenant: Tenant) -> None:
    project = await tenant.make_project()
    found = (await tenant.client.get(f"/projects/{project}/dataset/stats")).json()
    assert (found["total"], found["leakage"], found["report"], found["validation_errors"]) == (0, None, None, {})
    assert (await tenant.client.get(f"/projects/{project}/dataset/examples")).json()["items"] == []


async def test_the_total_of_every_filter_is_the_number_of_its_rows(planted: Planted) -> None:
    seen = set()
    for split in (None, "train", "eval", "preview"):
        for is_valid in (None, True, False):
            for source in (None, "generated", "imported", "manual"):
                for reason in (None, "duplicate", "nothing of the kind"):
                    wanted = {"split": split, "is_valid": is_valid, "source": source, "invalid_reason": reason}
                    wanted = {name: value for name, value in wanted.items() if value is not None}
                    page = await planted.get("/examples", **wanted)
                    assert page["total"] == len(page["items"]), wanted
                    for item in page["items"]:
                        assert {name: item[name] for name in wanted} == wanted
                    seen.add(page["total"])
    assert len(seen) > 4
    for bad in ({"split": "test"}, {"is_valid": "perhaps"}, {"source": "stolen"}, {"limit": 0}, {"offset": -1}):
        await planted.get("/examples", 422, **bad)


async def test_pages_follow_one_another(planted: Planted) -> None:
    ids = []
    for offset in range(0, 10, 3):
        page = await planted.get("/examples", limit=3, offset=offset)
        assert page["total"] == 8
        ids += [item["id"] for item in page["items"]]
    assert ids == planted.ids


async def test_pages_of_many_examples_are_where_they_were_without_anchors(db: Database, tenant: Tenant) -> None:
    """Also after one in front was deleted, and behind the end."""
    planted = await plant(db, tenant, [{}])
    statement = text("""
    INSERT INTO examples
      (public_id, dataset_id, split, instruction, input, output, token_count, fingerprint, meta, is_valid)
    SELECT gen_random_uuid(), :id, CASE WHEN n % 3 = 0 THEN 'eval' ELSE 'train' END, n::text, '', 'a', 1, 'f', '{}',
      true
    FROM generate_series(1, :rows) n
    """)
    async with db.transaction() as session:
        await session.execute(statement, {"id": planted.dataset_id, "rows": 3 * stats.ANCHOR_EVERY + 10})
    for _ in range(2):
        async with db.transaction() as session:
            query = select(Example.public_id).where(Example.dataset_id == planted.dataset_id).order_by(Example.id)
            ids = [str(public_id) for public_id in await session.scalars(query)]
        for offset in (
            0,
            1,
            *(step * stats.ANCHOR_EVERY + by for step in (1, 2, 3) for by in (-1, 0, 1)),
            len(ids),
            10**7,
        ):
            page = await planted.get("/examples", limit=7, offset=offset)
            assert [item["id"] for item in page["items"]] == ids[offset : offset + 7], offset
            assert page["total"] == len(ids)
        await planted.send("DELETE", f"/examples/{ids[2]}", status=204)
    evals = await planted.get("/examples", split="eval", limit=2, offset=stats.ANCHOR_EVERY)
    assert [item["data"]["instruction"] for item in evals["items"]] == ["15006", "15009"], "one eval was deleted"


async def test_counted_once_until_something_changes(planted: Planted, db: Database) -> None:
    await planted.get("/examples")
    with Scans(db) as scans:
        for _ in range(3):
            await planted.get("/examples", split="train")
            await planted.get("/stats")
        assert scans.count == 0
        await planted.patch(0, {"is_valid": False})
        assert (await planted.get("/stats"))["valid"] == 2
        assert scans.count == 1
        await planted.get("/stats")
        assert scans.count == 1


async def test_right_after_every_kind_of_change(planted: Planted, db: Database) -> None:
    async def one(number: int) -> Any:
        return Example.public_id == UUID(planted.ids[number])

    changes = [
        update(Example).where(await one(0)).values(split="eval"),
        update(Example).where(await one(1)).values(token_count=1000),
        update(Example).where(await one(3)).values(invalid_reason="another"),
        update(Example).where(Example.dataset_id == planted.dataset_id).values(is_valid=True, invalid_reason=None),
        delete(Example).where(await one(2)),
        delete(Example).where(Example.dataset_id == planted.dataset_id),
    ]
    for statement in changes:
        await planted.get("/stats")
        async with db.transaction() as session:
            await session.execute(statement)
        await same_as_counted(planted, db)
    async with db.transaction() as session:
        session.add_all([example(planted.dataset_id, number) for number in range(3)])
    assert (await planted.get("/stats"))["by_split"]["train"] == {
        "count": 3, "avg_tokens": 11, "min_tokens": 10, "max_tokens": 12, "preferences": 0,
    }  # fmt: skip


async def test_a_reader_beside_a_writer_keeps_nothing_stale(planted: Planted, db: Database) -> None:
    async with db.transaction() as writer:
        await writer.execute(update(Example).where(Example.public_id == UUID(planted.ids[0])).values(token_count=900))
        # The writer holds the dataset's row; who only reads must not wait for it.
        before = await asyncio.wait_for(planted.get("/stats"), 5)
        assert before["by_split"]["train"]["max_tokens"] == 45
        dataset = await writer.get_one(Dataset, planted.dataset_id)
        assert (await stats.of(writer, dataset)).by_split["train"].max_tokens == 900
    assert (await planted.get("/stats"))["by_split"]["train"]["max_tokens"] == 900
    await same_as_counted(planted, db)


async def test_a_rolled_back_count_is_not_kept(planted: Planted, db: Database) -> None:
    with pytest.raises(KeyError):
        async with db.transaction() as session:
            await session.execute(delete(Example).where(Example.dataset_id == planted.dataset_id))
            assert (await stats.of(session, await session.get_one(Dataset, planted.dataset_id))).total == 0
            raise KeyError
    assert (await planted.get("/stats"))["total"] == 7


async def same_as_counted(planted: Planted, db: Database) -> None:
    """The kept counts are those of a count from nothing."""
    found = await planted.get("/stats")
    async with db.transaction() as session:
        rows = (
            await session.execute(
                select(Example.split, Example.is_valid, Example.token_count).where(
                    Example.dataset_id == planted.dataset_id
                )
            )
        ).all()
    rows = [row for row in rows if row.split != "preview"]
    assert found["total"] == len(rows)
    for split, counted in found["by_split"].items():
        tokens = [row.token_count for row in rows if row.split == split and row.is_valid]
        assert counted == {
            "count": len(tokens),
            "avg_tokens": round(sum(tokens) / len(tokens)) if tokens else 0,
            "min_tokens": min(tokens, default=0),
            "max_tokens": max(tokens, default=0),
            "preferences": 0,
        }
