"""Exports as a stream: what is in them, that they can be uploaded again, and that they end with their reader."""

import asyncio
import csv
import io
import json
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Any, get_args
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import ClientDisconnect

from backend.contents.records import tables
from backend.contents.records.mapping import map_row
from backend.datasets import exporting
from backend.datasets.formats import Format, messages_of
from backend.datasets.models import Dataset
from backend.kit.db import Database
from backend.kit.formulas import unguarded
from tests.conftest import Tenant
from tests.datasets.planting import Planted, plant

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [{"role": "user", "content": "Hé?"}, {"role": "assistant", "content": "Ho.\nTwo lines."}]
ROWS: list[dict[str, Any]] = [
    {"instruction": "Why, \"really\"?", "output": "Because;\nof, that. é 日 😀 \u2028"},
    {"input": "A given text.", "split": "eval"},
    {"history": [SYSTEM]},
    {"history": TURNS, "input": "More."},
    {"history": [SYSTEM, *TURNS]},
    {"instruction": "=1+1", "input": "@SUM(A1)", "output": "-2 degrees"},
    {"is_valid": False, "invalid_reason": "duplicate"},
    {"split": "preview"},
]  # fmt: skip
VALID = [number for number, row in enumerate(ROWS) if row.get("is_valid", True) and row.get("split") != "preview"]


@pytest.fixture
async def planted(db: Database, tenant: Tenant) -> Planted:
    return await plant(db, tenant, [dict(row) for row in ROWS])


async def export(planted: Planted, **params: Any) -> httpx.Response:
    answer = await planted.tenant.client.get(f"{planted.path}/export", params=params)
    assert answer.status_code == 200, answer.text
    return answer


def lines_of(answer: httpx.Response) -> list[Any]:
    return [json.loads(line) for line in answer.content.split(b"\n")[:-1]]


async def test_all_that_is_valid_in_its_order(planted: Planted) -> None:
    answer = await export(planted)
    assert answer.headers["content-type"] == "application/jsonl"
    assert answer.headers["content-disposition"] == 'attachment; filename="dataset-current-all-jsonl.jsonl"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert [line["id"] for line in lines_of(answer)] == [planted.ids[number] for number in VALID]
    assert [line["id"] for line in lines_of(await export(planted, split="eval"))] == [planted.ids[1]]
    assert len(lines_of(await export(planted, split="train"))) == len(VALID) - 1
    invalid = [line for line in lines_of(await export(planted, include_invalid=True)) if "is_valid" in line]
    assert [(line["id"], line["invalid_reason"]) for line in invalid] == [(planted.ids[6], "duplicate")]


async def test_a_csv(planted: Planted) -> None:
    answer = await export(planted, format="csv", split="train")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert 'filename="dataset-current-train-csv.csv"' in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert len(rows) == len(VALID) - 1
    assert rows[-1]["instruction"] == "'=1+1"
    assert rows[-1]["output"] == "'-2 degrees"


async def test_a_version_is_what_was_frozen(planted: Planted) -> None:
    before = (await export(planted)).content
    first = await planted.send("POST", "/versions", None, 201)
    await planted.patch(0, {"data": {"output": "Changed."}})
    await planted.send("DELETE", f"/examples/{planted.ids[2]}", status=204)
    await planted.patch(1, {"split": "train"})
    await planted.patch(6, {"data": {"output": "Valid now."}})
    second = await planted.send("POST", "/versions", None, 201)
    after = (await export(planted)).content
    await planted.send("PATCH", "/examples", {"ids": planted.ids[3:6], "is_valid": False})
    frozen = await export(planted, version=first["number"])
    assert frozen.content == before != after
    assert 'filename="dataset-v1-all-jsonl.jsonl"' in frozen.headers["content-disposition"]
    assert (await export(planted, version=second["number"], dataset_id=second["dataset_id"])).content == after
    splits = [lines_of(await export(planted, version=1, split=split)) for split in ("train", "eval")]
    assert [len(found) for found in splits] == [first["train_count"], first["eval_count"]]


async def test_an_earlier_dataset(planted: Planted, db: Database) -> None:
    version = await planted.send("POST", "/versions", None, 201)
    async with db.transaction() as session:
        earlier = await session.get_one(Dataset, planted.dataset_id)
        session.add(Dataset(project_id=earlier.project_id, name="Made anew", status="processing"))
    assert lines_of(await export(planted)) == []
    assert len(lines_of(await export(planted, dataset_id=version["dataset_id"]))) == len(VALID)
    assert len(lines_of(await export(planted, dataset_id=version["dataset_id"], version=1))) == len(VALID)
    assert (await planted.get("/export", 404, version=1))["error_code"] == "VERSION_NOT_FOUND"


async def test_what_cannot_be_exported(planted: Planted, make_tenant: Any, db: Database) -> None:
    assert (await planted.get("/export", 404, version=1))["error_code"] == "VERSION_NOT_FOUND"
    assert (await planted.get("/export", 404, dataset_id=str(uuid4())))["error_code"] == "DATASET_NOT_FOUND"
    for bad in ({"format": "xml"}, {"split": "preview"}, {"version": 0}, {"version": 10**12}, {"dataset_id": "1"}):
        await planted.get("/export", 422, **bad)
    empty = await planted.tenant.make_project()
    refused = await planted.tenant.client.get(f"/projects/{empty}/dataset/export")
    assert (refused.status_code, refused.json()["error_code"]) == (400, "NO_DATASET")
    thief = await plant(db, await make_tenant(), [{}])
    version = await planted.send("POST", "/versions", None, 201)
    assert (await thief.tenant.client.get(f"{planted.path}/export")).status_code == 404
    for params in ({"dataset_id": version["dataset_id"]}, {"dataset_id": version["dataset_id"], "version": 1}):
        assert (await thief.get("/export", 404, **params))["error_code"] == "DATASET_NOT_FOUND"


@pytest.mark.parametrize("format", [name for name in get_args(Format) if name != "preference"])
async def test_what_is_exported_can_be_read_in_again(planted: Planted, format: Format) -> None:
    """Row for row; a shape that has no field for the input holds it below the instruction, as training does."""
    body = (await export(planted, format=format)).text
    if format == "csv":
        found = list(tables.read_table(iter(io.StringIO(body.replace("\r\n", "\n")).readlines()), ","))
        fields = [
            {name: unguarded(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for _, row in found
        ]
    else:
        fields = [json.loads(line) for line in body.split("\n")[:-1]]
    rows = [map_row(line, found)[1] for line, found in enumerate(fields, 1)]
    exact = format in ("jsonl", "alpaca", "csv")
    for row, number in zip(rows, VALID, strict=True):
        planned = {
            "instruction": f"Question {number}?",
            "input": "",
            "output": f"Answer {number}.",
            "history": None,
            **ROWS[number],
        }
        texts = [planned[name] for name in ("instruction", "input", "output")]
        texts[2] = texts[2].strip()
        if exact:
            assert [row.instruction, row.input, row.output, row.history] == [*texts, planned["history"]]
        assert messages_of(row.instruction, row.input, row.output, row.history) == messages_of(
            *texts, planned["history"]
        )


class Readings:
    """Counts the transactions that an export opens."""

    def __init__(self, db: Database) -> None:
        self.count = 0
        self._db = db

    def __call__(self) -> AbstractAsyncContextManager[AsyncSession]:
        self.count += 1
        return self._db.transaction()


@pytest.fixture
async def many(db: Database, tenant: Tenant) -> Planted:
    """20 batches of examples, each of 1 KB."""
    planted = await plant(db, tenant, [{}])
    statement = text("""
    INSERT INTO examples
      (public_id, dataset_id, split, instruction, input, output, token_count, fingerprint, meta, is_valid)
    SELECT gen_random_uuid(), :id, 'train', 'Question ' || n, '', repeat('x', 1000), 10, 'f' || n, '{}', true
    FROM generate_series(2, :rows) n
    """)
    async with db.transaction() as session:
        await session.execute(statement, {"id": planted.dataset_id, "rows": 20 * exporting.BATCH})
    return planted


async def test_batches_are_read_as_they_are_wanted(many: Planted, db: Database) -> None:
    readings = Readings(db)
    async with aclosing(exporting.rows(readings, many.dataset_id, split="all")) as batches:
        async for batch in batches:
            assert (len(batch), readings.count) == (exporting.BATCH, 1)
            break
    assert readings.count == 1
    seen = [row.id async for batch in exporting.rows(readings, many.dataset_id, split="all") for row in batch]
    assert len(seen) == len(set(seen)) == 20 * exporting.BATCH


async def test_rows_that_go_and_come_meanwhile(many: Planted, db: Database) -> None:
    """None comes twice, and none that stays is left out."""
    everything = {
        row.id async for batch in exporting.rows(db.transaction, many.dataset_id, split="all") for row in batch
    }
    seen: list[Any] = []
    async for batch in exporting.rows(db.transaction, many.dataset_id, split="all"):
        seen += [row.id for row in batch]
        async with db.transaction() as session:
            await session.execute(
                text("DELETE FROM examples WHERE dataset_id = :id AND id % 97 = :rest"),
                {"id": many.dataset_id, "rest": len(seen) // exporting.BATCH},
            )
    assert len(seen) == len(set(seen))
    left = {row.id async for batch in exporting.rows(db.transaction, many.dataset_id, split="all") for row in batch}
    assert left <= set(seen) <= everything


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_a_client_that_goes_away_ends_the_reading(many: Planted, app: Any, spec_version: str) -> None:
    """As both kinds of servers tell it: by a message, or by refusing to send."""
    gone = asyncio.Event()
    sent: list[int] = []
    path = f"{many.path}/export"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"authorization", many.tenant.client.headers["authorization"].encode()), (b"host", b"testserver")],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    first = True

    async def receive() -> dict[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and message.get("body"):
            sent.append(message["body"].count(b"\n"))
            if len(sent) == 2:
                gone.set()
            if len(sent) > 2 and spec_version == "2.4":
                raise OSError("the client is gone")

    # What is raised is for the server, which drops the connection.
    refusal = pytest.raises((ClientDisconnect, RuntimeError)) if spec_version == "2.4" else nullcontext()
    with refusal:
        await asyncio.wait_for(app(scope, receive, send), 20)
    assert 2 <= len(sent) <= 4, "of 20 batches"
    pool = app.state.services.db.engine.pool
    assert pool.checkedout() == 0
    assert (await many.get("/stats"))["total"] == 20 * exporting.BATCH
