"""Frozen versions stay what they were: against a plain model, under edits at once, through the API."""

import asyncio
import hashlib
import json
import random
import secrets
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as run_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, func, select, text, update

import backend.models  # noqa: F401  (every mapped class must be known before the first query)
from backend.datasets import editing, exporting, queries, versions
from backend.datasets.errors import NoDataset
from backend.datasets.models import Dataset, DatasetVersion, Example, RetiredExample
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.projects.models import Project
from backend.users.models import User
from tests.conftest import Tenant
from tests.datasets.planting import Planted, example, plant

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hé?"},
    {"role": "assistant", "content": 'Ho "x"\n'},
]
HELD = ("split", "instruction", "input", "output", "history")


def digest(rows: list[dict[str, Any]]) -> str:
    """The rule of docs/api.md, written once more: SHA-256 of the rows' SHA-256, parts set apart by NUL."""
    whole = hashlib.sha256()
    for row in rows:
        history = row["history"]
        if history is not None:  # as PostgreSQL writes jsonb: the shorter key first
            history = json.dumps(
                [{"role": turn["role"], "content": turn["content"]} for turn in history], ensure_ascii=False
            )
        parts = [row["split"], row["instruction"], row["input"], row["output"], history or ""]
        whole.update(hashlib.sha256("\0".join(parts).encode()).digest())
    return whole.hexdigest()


def valid(rows: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: rows[key][name] for name in HELD}
        for key in sorted(rows)
        if rows[key]["is_valid"] and rows[key]["split"] != "preview"
    ]


class Versions(RuleBasedStateMachine):
    """Random writes and freezes on one dataset, and beside them a dict per version."""

    url = ""
    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.db = Database(self.url, pool_size=1, max_overflow=0)
        self.rows: dict[int, dict[str, Any]] = {}
        self.frozen: dict[int, list[dict[str, Any]]] = {}
        self.changed = True

    def teardown(self) -> None:
        self.runner.run(self._check_everything())
        self.runner.run(self.db.close())
        self.runner.close()

    def run(self, work: Any) -> Any:
        type(self).operations += 1
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        async def make() -> None:
            async with self.db.transaction() as session:
                user = User(email=f"{secrets.token_hex(8)}@example.com", password_hash="!", name="V")
                session.add(user)
                await session.flush()
                project = Project(user_id=user.id, name="V", task_type="qa", config={}, stage="draft")
                session.add(project)
                await session.flush()
                dataset = Dataset(project_id=project.id, name="V", status="ready")
                session.add(dataset)
                await session.flush()
                self.dataset_id = dataset.id

        self.run(make())

    @rule(
        texts=st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), min_size=1, max_size=4
        ),
        split=st.sampled_from(["train", "train", "eval", "preview"]),
        history=st.sampled_from([None, None, TURNS]),
        kept=st.sampled_from([True, True, True, False]),
    )
    def add(self, texts: list[str], split: str, history: Any, kept: bool) -> None:
        async def write() -> None:
            rows = [
                example(self.dataset_id, 0, split=split, instruction=found, output=found * 2, history=history)
                for found in texts
            ]
            if not kept:
                with pytest.raises(KeyError):
                    async with self.db.transaction() as session:
                        session.add_all(rows)
                        await session.flush()
                        raise KeyError
                return
            async with self.db.transaction() as session:
                await queries.lock(session, self.dataset_id)
                session.add_all(rows)
            for row in rows:
                self.rows[row.id] = {**{name: getattr(row, name) for name in HELD}, "is_valid": True}

        self.run(write())

    @precondition(lambda self: self.rows)
    @rule(
        data=st.data(),
        values=st.fixed_dictionaries(
            {},
            optional={
                "output": st.sampled_from(["a", "b", "ç"]),
                "split": st.sampled_from(["train", "eval"]),
                "is_valid": st.booleans(),
                "history": st.sampled_from([None, TURNS]),
            },
        ),
        kept=st.sampled_from([True, True, True, False]),
    )
    def change_many(self, data: st.DataObject, values: dict[str, Any], kept: bool) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.rows)), min_size=1, max_size=6, unique=True))

        async def write() -> None:
            statement = update(Example).where(Example.id.in_(ids)).values(**values, meta={"touched": True})
            async with self.db.transaction() as session:
                await session.execute(statement)
                if not kept:
                    await session.rollback()

        self.run(write())
        if kept:
            for key in ids:
                self.rows[key].update(values)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def edit_and_restore(self, data: st.DataObject) -> None:
        """By the service: whatever becomes of the row, the model takes it over from the live table."""
        key = data.draw(st.sampled_from(sorted(self.rows)))
        action = data.draw(st.sampled_from(["edit", "restore", "reject"]))

        async def write() -> None:
            async with self.db.transaction() as session:
                row = await session.get_one(Example, key)
                if action == "edit":
                    await editing.change(session, row, texts={"output": data.draw(st.sampled_from(["x", "y"]))})
                elif action == "reject":
                    await editing.change(session, row, texts={}, is_valid=False)
                else:
                    await editing.restore(session, row)
                self.rows[key].update({name: getattr(row, name) for name in HELD}, is_valid=row.is_valid)

        self.run(write())

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.rows)), min_size=1, max_size=3, unique=True))

        async def write() -> None:
            async with self.db.transaction() as session:
                await session.execute(delete(Example).where(Example.id.in_(ids)))

        self.run(write())
        for key in ids:
            del self.rows[key]

    @rule()
    def freeze(self) -> None:
        async def write() -> tuple[DatasetVersion, bool] | None:
            async with self.db.transaction() as session:
                try:
                    return await versions.freeze(session, self.dataset_id)
                except NoDataset:
                    return None

        found, expected = self.run(write()), valid(self.rows)
        if found is None:
            assert not any(row["split"] == "train" for row in expected)
            return
        version, is_new = found
        assert version.sha256 == digest(expected)
        assert (version.train_count, version.eval_count) == tuple(
            sum(row["split"] == split for row in expected) for split in ("train", "eval")
        )
        last = max(self.frozen, default=0)
        assert is_new == (not last or self.frozen[last] != expected)
        assert version.number == last + is_new
        self.frozen[version.number] = expected

    @invariant()
    def the_last_version_holds(self) -> None:
        if self.frozen:
            self.runner.run(self._check([max(self.frozen)]))

    async def _check_everything(self) -> None:
        await self._check(list(self.frozen))
        for number, expected in self.frozen.items():
            batches = exporting.rows(self.db.transaction, self.dataset_id, split="all", version=number)
            read = [{name: getattr(row, name) for name in HELD} async for batch in batches for row in batch]
            assert read == expected

    async def _check(self, numbers: list[int]) -> None:
        async with self.db.transaction() as session:
            for number in numbers:
                version = await versions.get(session, self.dataset_id, number)
                assert version.sha256 == digest(self.frozen[number])
                assert await versions.verify(session, version)


def test_against_a_plain_model(settings: Settings) -> None:
    machine = type("MachineOfVersions", (Versions,), {"url": settings.database_url, "operations": 0})
    run_state_machine_as_test(machine, settings=_FEW)
    assert machine.operations > 600


_FEW = run_settings(
    max_examples=40, stateful_step_count=40, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture
async def planted(db: Database, tenant: Tenant) -> Planted:
    return await plant(
        db, tenant, [{}, {}, {"split": "eval"}, {"is_valid": False}, {"split": "preview"}, {"history": TURNS}]
    )


async def all_hold(db: Database, dataset_id: int) -> list[DatasetVersion]:
    async with db.transaction() as session:
        found = (
            await session.scalars(
                select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id).order_by(DatasetVersion.number)
            )
        ).all()
        for version in found:
            assert await versions.verify(session, version), version.number
    return list(found)


async def frozen_texts(db: Database, planted: Planted, number: int) -> list[str]:
    batches = exporting.rows(db.transaction, planted.dataset_id, split="all", version=number)
    return [row.output for batch in [found async for found in batches] for row in batch]


async def test_by_the_api(planted: Planted, db: Database) -> None:
    first = await planted.send("POST", "/versions", {"note": " before the corrections "}, 201)
    assert (first["number"], first["train_count"], first["eval_count"]) == (1, 3, 1)
    assert (first["note"], first["run_ids"]) == ("before the corrections", [])
    assert await planted.send("POST", "/versions", {"note": "again"}, 200) == first
    assert await planted.send("POST", "/versions", None, 200) == first
    await planted.patch(3, {"data": {"output": "Valid from now on."}})
    second = await planted.send("POST", "/versions", None, 201)
    assert (second["number"], second["train_count"]) == (2, 4)
    assert second["sha256"] != first["sha256"]
    await planted.send("POST", f"/examples/{planted.ids[3]}/restore")
    third = await planted.send("POST", "/versions", None, 201)
    assert third["sha256"] == first["sha256"], "the same texts"
    listed = (await planted.get("/versions"))["versions"]
    assert listed == [third, second, first]
    assert await planted.get(f"/examples/{planted.ids[0]}") == {
        **await planted.get(f"/examples/{planted.ids[0]}"), "version": 1,
    }  # fmt: skip
    await all_hold(db, planted.dataset_id)


async def test_what_cannot_be_frozen(tenant: Tenant, db: Database, make_tenant: Any) -> None:
    planted = await plant(db, tenant, [{"split": "preview"}, {"split": "eval"}, {"is_valid": False}])
    refused = await planted.send("POST", "/versions", None, 400)
    assert refused["error_code"] == "NO_DATASET"
    assert planted.project in refused["detail"]
    empty = await tenant.make_project()
    assert (await tenant.client.post(f"/projects/{empty}/dataset/versions")).status_code == 400
    assert (await tenant.client.get(f"/projects/{empty}/dataset/versions")).json() == {"versions": []}
    for body in ({"note": 3}, {"number": 7}, {"note": "a" * 2001}, []):
        await planted.send("POST", "/versions", body, 422)
    thief = await make_tenant()
    for method in ("GET", "POST"):
        assert (await thief.client.request(method, f"{planted.path}/versions")).status_code == 404
    async with db.transaction() as session:
        with pytest.raises(NoDataset, match="dataset/generate"):
            await versions.freeze(session, planted.dataset_id)


@pytest.mark.parametrize(
    "values",
    [{"instruction": "?"}, {"input": "!"}, {"output": "."}, {"history": TURNS}, {"split": "eval"}, {"is_valid": False}],
    ids=lambda values: next(iter(values)),
)
async def test_each_column_alone(planted: Planted, db: Database, values: dict[str, Any]) -> None:
    """Changed, frozen, changed back and deleted, by plain statements."""
    row = Example.public_id == UUID(planted.ids[1])
    back = {
        "instruction": "Question 1?", "input": "", "output": "Answer 1.", "history": None, "split": "train",
        "is_valid": True,
    }  # fmt: skip
    steps = [
        update(Example).where(row).values(**values),
        update(Example).where(row).values(**back),
        delete(Example).where(row),
    ]
    await planted.send("POST", "/versions", None, 201)
    for number, statement in enumerate(steps, 2):
        async with db.transaction() as session:
            await session.execute(statement)
        await all_hold(db, planted.dataset_id)
        assert (await planted.send("POST", "/versions", None, 201))["number"] == number
    async with db.transaction() as session:
        query = select(RetiredExample).where(RetiredExample.dataset_id == planted.dataset_id)
        retired = (await session.scalars(query.order_by(RetiredExample.from_version))).all()
    assert [(found.from_version, found.until_version) for found in retired] == [(1, 2), (2, 3), (3, 4)]


async def test_many_freezes_at_once_make_one_version(planted: Planted, db: Database) -> None:
    answers = await asyncio.gather(*[planted.tenant.client.post(f"{planted.path}/versions") for _ in range(8)])
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await all_hold(db, planted.dataset_id)) == 1


@pytest.mark.parametrize("locks", [True, False])
async def test_a_freeze_waits_for_a_writer(planted: Planted, db: Database, locks: bool) -> None:
    async with db.transaction() as session:
        if locks:
            await queries.lock(session, planted.dataset_id)
        await session.execute(
            update(Example).where(Example.public_id == UUID(planted.ids[0])).values(output="Written first")
        )
        freezing = asyncio.ensure_future(planted.send("POST", "/versions", None, 201))
        assert not (await asyncio.wait({freezing}, timeout=0.5))[0], "it must wait"
    assert (await freezing)["number"] == 1
    assert "Written first" in await frozen_texts(db, planted, 1)
    await all_hold(db, planted.dataset_id)


@pytest.mark.parametrize("action", ["edit", "delete", "plain update", "insert"])
async def test_a_writer_waits_for_a_freeze(planted: Planted, db: Database, action: str) -> None:
    async def write() -> None:
        if action == "edit":
            await planted.patch(0, {"data": {"output": "Written later"}})
        elif action == "delete":
            await planted.send("DELETE", f"/examples/{planted.ids[0]}", status=204)
        else:
            async with db.transaction() as session:
                if action == "insert":
                    session.add(example(planted.dataset_id, 77))
                else:
                    statement = update(Example).where(Example.public_id == UUID(planted.ids[0]))
                    await session.execute(statement.values(output="Written later"))

    async with db.transaction() as session:
        version, _ = await versions.freeze(session, planted.dataset_id)
        writing = asyncio.ensure_future(write())
        assert not (await asyncio.wait({writing}, timeout=0.5))[0], "it must wait"
    await writing
    texts = await frozen_texts(db, planted, version.number)
    assert texts[0] == "Answer 0."
    assert len(texts) == 4
    async with db.transaction() as session:
        retired = (
            await session.scalars(select(RetiredExample).where(RetiredExample.dataset_id == planted.dataset_id))
        ).all()
    assert [(row.from_version, row.until_version) for row in retired] == ([] if action == "insert" else [(1, 2)])
    await all_hold(db, planted.dataset_id)


async def test_a_freeze_that_is_rolled_back_leaves_nothing(planted: Planted, db: Database) -> None:
    with pytest.raises(KeyError):
        async with db.transaction() as session:
            await versions.freeze(session, planted.dataset_id)
            raise KeyError
    await planted.patch(0, {"data": {"output": "In the first version"}})
    assert (await planted.send("POST", "/versions", None, 201))["number"] == 1
    assert "In the first version" in await frozen_texts(db, planted, 1)


async def test_under_fire(planted: Planted, db: Database) -> None:
    """Everyone at once; afterwards each version still holds exactly what it was frozen with."""
    async with db.transaction() as session:
        session.add_all([example(planted.dataset_id, 100 + number) for number in range(60)])
        await session.flush()
    page = await planted.get("/examples", limit=500)
    ids = [item["id"] for item in page["items"]]
    seen: dict[int, list[str]] = {}

    async def work(seed: int) -> None:
        chance = random.Random(seed)
        client = planted.tenant.client
        for step in range(25):
            one = f"{planted.path}/examples/{chance.choice(ids)}"
            kind = chance.randrange(7)
            if kind == 0:
                answer = await client.patch(one, json={"data": {"output": f"{seed} {step}"}})
            elif kind == 1:
                answer = await client.patch(one, json={"split": chance.choice(["train", "eval"])})
            elif kind == 2:
                answer = await client.post(f"{one}/restore")
            elif kind == 3 and chance.random() < 0.3:
                answer = await client.delete(one)
            elif kind == 4:
                some = [found["id"] for found in (await planted.get("/examples", limit=5, offset=step))["items"]]
                answer = await client.patch(
                    f"{planted.path}/examples", json={"ids": some, "is_valid": chance.random() < 0.8}
                )
            elif kind == 5:
                async with db.transaction() as session:  # as a job that splits anew, in one statement
                    await queries.lock(session, planted.dataset_id)
                    await session.execute(
                        update(Example)
                        .where(Example.dataset_id == planted.dataset_id, Example.split != "preview")
                        .values(split=text(f"CASE WHEN (id + {seed + step}) % 7 = 0 THEN 'eval' ELSE 'train' END"))
                    )
                continue
            else:
                answer = await client.post(f"{planted.path}/versions")
                if answer.status_code == 201:
                    seen[answer.json()["number"]] = await frozen_texts(db, planted, answer.json()["number"])
            assert answer.status_code in (200, 201, 204, 400, 404), answer.text

    await asyncio.gather(*[work(seed) for seed in range(6)])
    found = await all_hold(db, planted.dataset_id)
    assert len(found) == len(seen) > 3
    assert [version.number for version in found] == list(range(1, len(found) + 1))
    for number, texts in seen.items():
        assert await frozen_texts(db, planted, number) == texts
    counted = await planted.get("/stats")
    async with db.transaction() as session:
        live = (
            await session.execute(
                select(Example.is_valid, func.count())
                .where(Example.dataset_id == planted.dataset_id, Example.split != "preview")
                .group_by(Example.is_valid)
            )
        ).all()
    assert {True: counted["valid"], False: counted["invalid"]} == {True: 0, False: 0, **dict(live)}


@pytest.mark.parametrize("what", ["dataset", "project"])
async def test_all_of_it_goes_with_its_owner(planted: Planted, db: Database, what: str) -> None:
    await planted.send("POST", "/versions", None, 201)
    await planted.patch(0, {"data": {"output": "Changed"}})
    await planted.send("POST", "/versions", None, 201)
    if what == "project":
        assert (await planted.tenant.client.delete(f"/projects/{planted.project}")).status_code == 204
    else:
        async with db.transaction() as session:
            await session.delete(await session.get_one(Dataset, planted.dataset_id))
    async with db.transaction() as session:
        for model in (Example, DatasetVersion, RetiredExample):
            left = select(func.count()).select_from(model).where(model.dataset_id == planted.dataset_id)
            assert await session.scalar(left) == 0, model


async def test_what_says_nothing_new_retires_nothing(planted: Planted, db: Database) -> None:
    await planted.send("POST", "/versions", None, 201)
    async with db.transaction() as session:
        await session.execute(
            update(Example)
            .where(Example.dataset_id == planted.dataset_id)
            .values(meta={"page": 3}, token_count=99, chunk_id=None)
        )
        retired = (
            select(func.count()).select_from(RetiredExample).where(RetiredExample.dataset_id == planted.dataset_id)
        )
        assert await session.scalar(retired) == 0
    assert (await planted.send("POST", "/versions", None, 200))["number"] == 1
