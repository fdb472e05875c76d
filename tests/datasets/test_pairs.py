"""Pairs as a service: which are the same, to which side they go, and that a bulk is whole or not there."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from backend.datasets import pairs, queries, stats, versions
from backend.datasets.errors import DuplicatePair, PairRefused, UnknownDataset
from backend.datasets.models import Dataset, Example, RetiredExample
from backend.datasets.pairs import Added, NewPair
from backend.jobs.models import Job
from backend.kit.db import Database
from tests.conftest import Tenant
from tests.datasets.planting import plant


@pytest.fixture
async def dataset(db: Database, tenant: Tenant) -> Dataset:
    return await planted(db, tenant, [])


async def planted(db: Database, tenant: Tenant, rows: list[dict[str, Any]]) -> Dataset:
    made = await plant(db, tenant, rows)
    async with db.transaction() as session:
        return await session.get_one(Dataset, made.dataset_id)


async def add(db: Database, dataset: Dataset, *given: NewPair) -> Added:
    async with db.transaction() as session:
        row = await session.get_one(Dataset, dataset.id)
        return await pairs.add_many(session, row, given)


async def rows_of(db: Database, dataset: Dataset) -> list[Example]:
    async with db.transaction() as session:
        found = await session.scalars(select(Example).where(Example.dataset_id == dataset.id).order_by(Example.id))
        return list(found.all())


def numbered(count: int) -> list[NewPair]:
    return [NewPair(f"What is number {n}?", f"It is {n * n}.") for n in range(count)]


async def test_what_reads_the_same_is_the_same(db: Database, tenant: Tenant) -> None:
    """However its question is divided into instruction and input."""
    dataset = await planted(
        db,
        tenant,
        [
            {"instruction": "Sum up.", "input": "A text.\n\nIts end.", "output": "Short."},
            {"instruction": "Refused", "output": "Refused.", "is_valid": False, "invalid_reason": "judged_low"},
            {"instruction": "Shown", "output": "Shown.", "split": "preview"},
        ],
    )
    first = (await rows_of(db, dataset))[0].id
    given = [
        NewPair("Sum up.\n\nA text.\n\nIts end.", "Short."),
        NewPair("  sum UP.\n\nA   text.\n\nits end.", "short."),
        NewPair("Refused", "Refused."),
        NewPair("Shown", "Shown."),
        NewPair("Sum up.\n\nA text.", "Short."),
    ]
    added = await add(db, dataset, *given)
    # What a check refused or only a preview holds may be written by hand.
    assert (added.duplicates, len(added.ids)) == ([(0, first), (1, first)], 3)
    again = await add(db, dataset, *given)
    assert (again.ids, [index for index, _ in again.duplicates]) == ([], [0, 1, 2, 3, 4])


async def test_sides(db: Database, dataset: Dataset) -> None:
    await add(db, dataset, *numbered(10))
    assert {row.split for row in await rows_of(db, dataset)} == {"train"}, "a small dataset is all trained on"
    await add(db, dataset, *numbered(1000))
    rows = await rows_of(db, dataset)
    counts = Counter(row.split for row in rows)
    assert sum(counts.values()) == 1000
    assert 60 < counts["eval"] < 140, "about a tenth"
    # Another answer goes where the question is, in the same request or later, whatever its case.
    more = [NewPair(row.instruction, "Another.") for row in rows]
    await add(db, dataset, *more, *[NewPair(pair.question, "A third.") for pair in more])
    sides: dict[str, set[str]] = {}
    for row in await rows_of(db, dataset):
        sides.setdefault(row.instruction, set()).add(row.split)
    assert all(len(found) == 1 for found in sides.values())
    async with db.transaction() as session:
        version, _ = await versions.freeze(session, dataset.id)
        assert (version.train_count, version.eval_count) == (3000 - 3 * counts["eval"], 3 * counts["eval"])


async def test_sides_do_not_depend_on_the_request(db: Database, tenant: Tenant) -> None:
    at_once, one_by_one = await planted(db, tenant, [{}] * 1), await planted(db, tenant, [{}] * 1)
    given = numbered(60)
    await add(db, at_once, *given)
    for pair in given:
        await add(db, one_by_one, pair)
    found = [[(row.instruction, row.split) for row in await rows_of(db, made)] for made in (at_once, one_by_one)]
    assert found[0] == found[1]
    assert len({split for _, split in found[0]}) == 2


async def test_the_rows_of_pairs(db: Database, dataset: Dataset) -> None:
    noted = {"judge": {"faithfulness": "none"}}
    added = await add(db, dataset, NewPair(" Why? ", "Because.", noted), NewPair("How", "So"))
    rows = await rows_of(db, dataset)
    assert [row.id for row in rows] == added.ids
    first = rows[0]
    assert (first.instruction, first.input, first.output, first.source) == ("Why?", "", "Because.", "manual")
    assert (first.is_valid, first.history, first.original, first.from_version) == (True, None, None, 1)
    assert first.token_count > 0
    # What a person wrote down is never taken for what a check found.
    assert first.meta == {"pair": noted}
    assert pairs.metadata_of(first) == {"source": "manual", **noted}
    async with db.transaction() as session:
        found = await stats.of(session, await session.get_one(Dataset, dataset.id))
    assert (found.valid, found.character_count, found.size_bytes) == (2, 17, 17)


async def test_an_edit_leaves_frozen_versions_alone(db: Database, dataset: Dataset) -> None:
    number = (await add(db, dataset, NewPair("Why?", "Because."))).ids[0]
    async with db.transaction() as session:
        version, _ = await versions.freeze(session, dataset.id)
    async with db.transaction() as session:
        row = await session.get_one(Dataset, dataset.id)
        changed = await pairs.change(session, row, number, question="What for?", metadata={"by": "me"})
        assert (changed.instruction, changed.output, changed.meta) == ("What for?", "Because.", {"pair": {"by": "me"}})
        assert changed.original is not None
    async with db.transaction() as session:
        assert await versions.verify(session, version)
        await pairs.delete(session, dataset, number)
    async with db.transaction() as session:
        assert await versions.verify(session, version)
        kept = await session.scalar(select(func.count()).where(RetiredExample.dataset_id == dataset.id))
    assert kept == 1


async def test_a_change_that_makes_a_twin_changes_nothing(db: Database, dataset: Dataset) -> None:
    one, other = (await add(db, dataset, NewPair("Why?", "Because."), NewPair("How?", "So."))).ids
    refused: list[dict[str, Any]] = [{"question": "How?", "answer": "So."}, {"question": "?"}]
    for changes in refused:
        with pytest.raises((DuplicatePair, PairRefused)):
            async with db.transaction() as session:
                row = await session.get_one(Dataset, dataset.id)
                await pairs.change(session, row, one, **changes)
    assert [(row.id, row.instruction) for row in await rows_of(db, dataset)] == [(one, "Why?"), (other, "How?")]


async def test_a_bulk_that_is_cut_off_leaves_nothing(db: Database, dataset: Dataset) -> None:
    inserted = asyncio.Event()

    async def bulk() -> None:
        async with db.transaction() as session:
            row = await session.get_one(Dataset, dataset.id)
            assert len((await pairs.add_many(session, row, numbered(500))).ids) == 500
            inserted.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(bulk())
    await inserted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await rows_of(db, dataset) == []
    assert len((await add(db, dataset, *numbered(500))).ids) == 500


async def test_a_bulk_whose_connection_dies_leaves_nothing(db: Database, dataset: Dataset) -> None:
    with pytest.raises(DBAPIError):
        async with db.transaction() as session:
            row = await session.get_one(Dataset, dataset.id)
            await pairs.add_many(session, row, numbered(100))
            backend = await session.scalar(text("SELECT pg_backend_pid()"))
            async with db.transaction() as other:
                await other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": backend})
            await asyncio.sleep(0.2)  # until the driver has seen it
    assert await rows_of(db, dataset) == []


async def test_writers_take_turns(db: Database, dataset: Dataset) -> None:
    parts = [numbered(200)[start : start + 120] for start in (0, 40, 80, 0)]
    results = await asyncio.gather(*[add(db, dataset, *part) for part in parts])
    assert sum(len(result.ids) for result in results) == 200
    rows = await rows_of(db, dataset)
    assert len({row.fingerprint for row in rows}) == len(rows) == 200


async def test_a_dataset_that_goes_meanwhile(db: Database, dataset: Dataset) -> None:
    async with db.transaction() as session:
        stale = await session.get_one(Dataset, dataset.id)
        async with db.transaction() as other:
            await other.delete(await other.get_one(Dataset, dataset.id))
        with pytest.raises(UnknownDataset):
            await pairs.add_many(session, stale, numbered(1))


@pytest.mark.parametrize("is_made", [True, False])
async def test_status(db: Database, dataset: Dataset, is_made: bool) -> None:
    """A dataset that only held previews becomes ready; one that a job fills does so at the job's end."""
    async with db.transaction() as session:
        row = await session.get_one(Dataset, dataset.id)
        row.status = "processing"
        if is_made:
            user = await session.scalar(text("SELECT user_id FROM projects WHERE id = :id"), {"id": row.project_id})
            params = {"dataset_id": row.id}
            session.add(
                Job(
                    user_id=user,
                    project_id=row.project_id,
                    kind="dataset_prepare",
                    queue="llm",
                    max_attempts=1,
                    params=params,
                )
            )
    await add(db, dataset, NewPair("Why?", "Because."))
    async with db.transaction() as session:
        row = await session.get_one(Dataset, dataset.id)
        assert row.status == ("processing" if is_made else "ready")
        assert (await queries.find_making(session, row) is not None) == is_made


async def test_counts_of_a_former_release_are_counted_again(db: Database, dataset: Dataset) -> None:
    await add(db, dataset, NewPair("Why?", "Because."))
    async with db.transaction() as session:
        row = await session.get_one(Dataset, dataset.id)
        row.stats, row.stats_revision = (
            {"groups": [["train", True, None, "manual", 9, 9, 9, 9]], "anchors": []},
            row.revision,
        )
    async with db.transaction() as session:
        row = await session.get_one(Dataset, dataset.id)
        found = await stats.of_many(session, [row])
        assert (found[row.id].valid, found[row.id].size_bytes) == (1, 12)
    async with db.transaction() as session:
        row = await session.get_one(Dataset, dataset.id)
        assert row.stats is not None
        assert row.stats_revision == row.revision
        assert (await stats.of_many(session, [row]))[row.id].size_bytes == 12
