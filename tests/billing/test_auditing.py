"""The proof of the books: it finds whatever was changed behind the ledger's back, and nothing else."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from typer.testing import CliRunner, Result

from backend import cli
from backend.billing import auditing, ledger
from backend.jobs.models import Tick
from backend.kit.db import Database
from tests.conftest import Tenant

# What is changed, by SQL for the account :user, and the check that must tell.
CORRUPTIONS = {
    "a balance": ("UPDATE accounts SET posted = posted + 1 WHERE user_id = :user", "sums", "posted"),
    "a sum of usage": ("UPDATE accounts SET used = used - 1 WHERE user_id = :user", "sums", "used"),
    "a sum of purchases": ("UPDATE accounts SET purchased = 0 WHERE user_id = :user", "sums", "purchased"),
    "a debt": ("UPDATE accounts SET owed = 3 WHERE user_id = :user", "sums", "owed"),
    "what is held": ("UPDATE accounts SET held = held - 1 WHERE user_id = :user", "held", "held"),
    "a hold that vanished": ("DELETE FROM holds WHERE user_id = :user AND state = 'held'", "held", "held"),
    "an account that vanished": ("DELETE FROM accounts WHERE user_id = :user", "sums", "posted"),
    "an entry's characters": (
        "UPDATE ledger_entries SET characters = 901 WHERE user_id = :user AND kind = 'purchase'",
        "chain",
        "balance_after",
    ),
    "an entry's balance": (
        "UPDATE ledger_entries SET balance_after = 7 WHERE user_id = :user AND kind = 'grant'",
        "chain",
        "balance_after",
    ),
    "an entry that vanished": (
        "DELETE FROM ledger_entries WHERE user_id = :user AND kind = 'purchase'",
        "chain",
        "balance_after",
    ),
    "a usage without its hold's word": (
        "UPDATE holds SET settled = 1 WHERE user_id = :user AND state = 'settled'",
        "settled",
        "usage of hold",
    ),
    "a hold that was settled for nothing": (
        "UPDATE holds SET state = 'settled', settled = 40 WHERE user_id = :user AND state = 'held'",
        "settled",
        "usage of hold",
    ),
    "an entry of the wrong sign": (
        "UPDATE ledger_entries SET kind = 'refund' WHERE user_id = :user AND kind = 'purchase'",
        "kinds",
        "sign or kind",
    ),
    "a second grant": (
        "UPDATE ledger_entries SET kind = 'grant' WHERE user_id = :user AND kind = 'purchase'",
        "grants",
        "grants",
    ),
}


async def history(db: Database) -> int:
    """An account with a grant, a purchase, a settled hold and a live one of 40."""
    user = secrets.randbits(40)
    async with db.transaction() as session:
        await ledger.post(session, user_id=user, kind="grant", characters=500, reference=f"free:{user}", params={})
        await ledger.credit(session, user_id=user, kind="purchase", characters=900, reference=f"{user}", params={})
        done = await ledger.hold(session, user_id=user, characters=300, reference=f"{user}:a", purpose="generation")
        await ledger.settle(session, done.id, 200)
        await ledger.hold(session, user_id=user, characters=40, reference=f"{user}:b", purpose="generation")
    return user


@asynccontextmanager
async def corrupted(db: Database, statement: str, user: int) -> AsyncIterator[None]:
    """Changes rows behind the ledger's back, its trigger switched off, and puts them back at the end."""
    tables = ("ledger_entries", "accounts", "holds")

    async def behind_its_back(work: Callable[[AsyncSession], Any]) -> None:
        async with db.transaction() as session:
            await session.execute(text("ALTER TABLE ledger_entries DISABLE TRIGGER ledger_entries_append_only"))
            await work(session)
            await session.execute(text("ALTER TABLE ledger_entries ENABLE TRIGGER ledger_entries_append_only"))

    async def change(session: AsyncSession) -> None:
        for table in tables:
            await session.execute(text(f"CREATE TABLE kept_{table} AS SELECT * FROM {table} WHERE user_id = {user}"))
        changed = await session.execute(text(statement), {"user": user})
        assert changed.rowcount == 1  # type: ignore[attr-defined]

    async def put_back(session: AsyncSession) -> None:
        for table in tables:
            await session.execute(text(f"DELETE FROM {table} WHERE user_id = {user}"))
            await session.execute(text(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM kept_{table}"))
            await session.execute(text(f"DROP TABLE kept_{table}"))

    await behind_its_back(change)
    try:
        yield
    finally:
        await behind_its_back(put_back)


@pytest.mark.parametrize("what", CORRUPTIONS)
async def test_whatever_was_changed_is_found(db: Database, what: str) -> None:
    statement, check, named = CORRUPTIONS[what]
    user, other = await history(db), await history(db)
    assert not {user, other} & set((await auditing.verify(db)).users)
    async with corrupted(db, statement, user):
        found = [row for row in (await auditing.verify(db)).differences if row.user_id in (user, other)]
        assert {row.user_id for row in found} == {user}
        assert any(row.check == check and named in row.what for row in found), found
        assert all(row.kept != row.due for row in found)
    assert user not in (await auditing.verify(db)).users


async def test_work_that_goes_on_is_no_difference(db: Database) -> None:
    user = await history(db)

    async def work(number: int) -> None:
        for step in range(15):
            async with db.transaction() as session:
                held = await ledger.hold(
                    session, user_id=user, characters=3, reference=f"{user}:{number}:{step}", purpose="generation"
                )
            async with db.transaction() as session:
                await ledger.settle(session, held.id, 2)

    async def look() -> list[int]:
        return [*(await auditing.verify(db)).users]

    *_, first, second, third = await asyncio.gather(*[work(number) for number in range(6)], look(), look(), look())
    assert all(user not in found for found in (first, second, third))


async def test_the_hourly_check_shouts_who_it_is(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    user = await history(db)

    async def tick() -> auditing.Audit | None:
        async with db.transaction() as session:
            await session.execute(Tick.__table__.delete().where(Tick.task == auditing.VERIFY_TASK))
        return await auditing.verify_hourly(db)

    caplog.set_level(logging.INFO, auditing.__name__)
    found = await tick()
    assert found is not None
    assert not found.differences
    assert [record.levelname for record in caplog.records if record.name == auditing.__name__] == ["INFO"]
    caplog.clear()
    async with corrupted(db, CORRUPTIONS["a balance"][0], user):
        assert await tick() is not None
        assert await auditing.verify_hourly(db) is None
    [record] = [record for record in caplog.records if record.name == auditing.__name__]
    assert record.levelname == "ERROR"
    assert str(user) in record.getMessage()


async def admin(*arguments: str) -> Result:
    """The command itself, in a thread: it has a loop and a connection of its own."""
    return await asyncio.to_thread(CliRunner().invoke, cli.app, ["admin", "ledger", *arguments])


async def test_the_command_proves_the_books(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    user = await history(db)
    answer = await admin("verify")
    assert answer.exit_code == 0, answer.output
    assert "The books are right." in answer.output
    async with corrupted(db, CORRUPTIONS["a balance"][0], user):
        answer = await admin("verify")
    assert answer.exit_code == 1
    [line] = [line for line in answer.output.splitlines() if str(user) in line and "posted" in line]
    assert "1201" in line
    assert "1200" in line


async def test_an_adjustment_has_a_reason_and_is_booked_once(db: Database, tenant: Tenant) -> None:
    user = int((await tenant.client.get("/api/users/me")).json()["id"])
    answer = await admin("adjust", tenant.email, "250", "--reason", "An outage", "--reference", f"case {user}")
    assert answer.exit_code == 0, answer.output
    assert "250 available" in answer.output
    again = await admin("adjust", str(user), "250", "--reason", "An outage", "--reference", f"case {user}")
    assert "booked before" in again.output
    taken = await admin("adjust", str(user), "-50", "--reason", "Too much")
    assert taken.exit_code == 0, taken.output
    refused = await admin("adjust", str(user), "-201", "--reason", "Too much")
    assert refused.exit_code == 2
    assert "Only 200 characters" in refused.output
    for wrong in (("nobody@example.com", "5", "--reason", "x"), (str(user), "0", "--reason", "x"), (str(user), "5")):
        assert (await admin("adjust", *wrong)).exit_code == 2
    listed = (await tenant.client.get("/api/characters/transactions")).json()
    assert [(row["amount"], row["kind"]) for row in listed] == [(-50, "adjustment"), (250, "adjustment")]
    assert listed[1]["description"] == "Correction de 250 caractères par l'administration : An outage"
