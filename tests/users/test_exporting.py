"""The archive of an account: everything, of nobody else, without secrets."""

import io
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4
from zipfile import ZipFile

import httpx
import pytest
from sqlalchemy import select

from backend.kit.db import Database
from backend.kit.models import Base
from backend.users.exporting import SECRETS, owned_tables, stream_archive
from backend.users.models import User
from tests.conftest import Tenant, stored_keys
from tests.users.populating import NOBODYS, populate

URL = "/api/users/me/export"
# Named like a secret, and none: digests of what everybody may see, or counts.
HARMLESS = {"sha256", "request_sha256", "token_count", "prompt_tokens", "completion_tokens", "exclusive_key"}
HARMLESS |= {"file_key", "text_key", "key"}


async def archive_of(tenant: Tenant) -> ZipFile:
    answer = await tenant.client.get(URL)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert re.fullmatch(
        r'attachment; filename="finetuneflow-export-[\d-]+\.zip"', answer.headers["content-disposition"]
    )
    archive = ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    return archive


def rows_of(archive: ZipFile, table: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.read(f"rows/{table}.jsonl").splitlines()]


def test_every_table_is_a_users_or_says_that_it_is_nobodys() -> None:
    import backend.models  # noqa: F401

    owned = {table.name for table, _ in owned_tables(Base.metadata, 1)}
    assert owned.isdisjoint(NOBODYS)
    forgotten = set(Base.metadata.tables) - owned - NOBODYS
    assert not forgotten, f"{forgotten}: export them (by user_id, or a NOT NULL key to a user's row), or add to NOBODYS"


def test_every_column_that_is_named_like_a_secret_is_left_out() -> None:
    for table, _ in owned_tables(Base.metadata, 1):
        secret = {
            c.name for c in table.columns if re.search(r"password|digest|hash|cipher|secret|token|_?key$", c.name)
        }
        left = secret - HARMLESS - SECRETS.get(table.name, set())
        assert not left, f"{table.name}: {left}: a secret for SECRETS, or harmless?"
    assert all(set(Base.metadata.tables[name].columns.keys()) >= columns for name, columns in SECRETS.items())


async def test_each_table_gives_the_users_row_and_nobody_elses(
    make_tenant: Callable[[], Awaitable[Tenant]], db: Database
) -> None:
    one, other = await make_tenant(), await make_tenant()
    canaries = {one.email: secrets.token_hex(6), other.email: secrets.token_hex(6)}
    rows = {}
    for tenant in (one, other):
        async with db.transaction() as session:
            user = (await session.scalars(select(User.id).where(User.email == tenant.email))).one()
            rows[tenant.email] = await populate(session, user, canaries[tenant.email])
    archive = await archive_of(one)
    for table, _ in owned_tables(Base.metadata, 1):
        key = [column.name for column in table.primary_key.columns]
        found = [[row[name] for name in key] for row in rows_of(archive, table.name)]
        assert [rows[one.email][table.name][name] for name in key] in found, table.name
        shown = set(rows_of(archive, table.name)[0])
        assert shown == set(table.columns.keys()) - SECRETS.get(table.name, set())
    whole = b"".join(archive.read(name) for name in archive.namelist())
    assert canaries[one.email].encode() in whole
    assert canaries[other.email].encode() not in whole
    assert other.email.encode() not in whole
    for tenant in (one, other):  # what populate() made up is in nobody's way then
        body = {"password": tenant.password}
        assert (await tenant.client.request("DELETE", "/api/users/me", json=body)).status_code == 204
    for table, columns in SECRETS.items():
        if table == "users":
            continue
        for column in columns:
            value = rows[one.email][table][column]
            assert (value if isinstance(value, bytes) else value.encode()) not in whole, f"{table}.{column}"


async def test_the_files_are_in_it(tenant: Tenant, app: Any) -> None:
    project = await tenant.make_project(name="With files")
    text = "The lamp has three feet and one shade.\n" * 50
    assert (await tenant.upload(project, "lamp.txt", text.encode())).status_code == 201
    archive = await archive_of(tenant)
    listed = [json.loads(line) for line in archive.read("files.jsonl").splitlines()]
    assert sorted(row["name"] for row in listed) == sorted(
        f"files/{key}" for key in await stored_keys(app, f"projects/{project}")
    )
    assert all(len(archive.read(row["name"])) == row["bytes"] for row in listed)
    (content,) = rows_of(archive, "contents")
    assert archive.read(f"files/{content['file_key']}") == text.encode()
    assert b"three feet" in archive.read(f"files/{content['text_key']}")


async def test_the_checkpoints_of_a_running_training_are_left_out(tenant: Tenant, app: Any) -> None:
    project = await tenant.make_project()
    prefix = f"projects/{project}/runs/{uuid4()}/1"
    for name in ("checkpoints/20/checkpoint-20/optimizer.safetensors", "adapter_model.safetensors"):
        await app.state.services.storage.put_bytes(f"{prefix}/{name}", b"x" * 100)
    archive = await archive_of(tenant)
    files = [name for name in archive.namelist() if name.startswith("files/")]
    assert files == [f"files/{prefix}/adapter_model.safetensors"]
    assert [json.loads(line)["name"] for line in archive.read("files.jsonl").splitlines()] == files


async def test_an_empty_account_has_an_archive_too(tenant: Tenant) -> None:
    archive = await archive_of(tenant)
    (user,) = rows_of(archive, "users")
    assert user["email"] == tenant.email
    assert "password_hash" not in user
    assert archive.read("files.jsonl") == b""
    assert b"rows/TABLE.jsonl" in archive.read("README.txt")


async def test_it_is_sent_while_it_is_read(tenant: Tenant, app: Any, db: Database) -> None:
    """A large file passes in pieces, so that no archive is ever held whole."""
    project = await tenant.make_project()
    services = app.state.services
    size = 40 * 1024 * 1024
    await services.storage.put_bytes(f"projects/{project}/large.bin", secrets.token_bytes(1024) * (size // 1024))
    pieces = [
        len(piece)
        async for piece in stream_archive(db, services.storage, tenant.login["user"]["id"], [f"projects/{project}"])
    ]
    assert sum(pieces) > size
    assert max(pieces) < 12 * 1024 * 1024


async def test_more_rows_than_one_batch_are_all_there(tenant: Tenant) -> None:
    made = [await tenant.make_project(name=f"Project {number}") for number in range(205)]
    rows = rows_of(await archive_of(tenant), "projects")
    assert [row["public_id"] for row in rows] == made


async def test_whoever_leaves_in_the_middle_leaves_nothing_open(tenant: Tenant, app: Any, db: Database) -> None:
    services = app.state.services
    busy = db.engine.pool.checkedout()  # type: ignore[attr-defined]
    archive = stream_archive(db, services.storage, tenant.login["user"]["id"], [])
    await anext(archive)
    await archive.aclose()  # type: ignore[attr-defined]
    assert db.engine.pool.checkedout() == busy  # type: ignore[attr-defined]


async def test_nobody_exports_without_a_login(anonymous: httpx.AsyncClient) -> None:
    assert (await anonymous.get(URL)).status_code == 401


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_it_is_only_read(tenant: Tenant, method: str) -> None:
    assert (await tenant.client.request(method, URL)).status_code == 405
