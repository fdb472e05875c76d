"""The ledger: written once, and never changed."""

import asyncio
import secrets

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from backend.billing import ledger
from backend.kit.db import Database


async def _record(db: Database, user: int, characters: int, reference: str) -> bool:
    async with db.transaction() as session:
        return await ledger.record_usage(
            session, user_id=user, characters=characters, reference=reference, params={"name": "Dataset"}
        )


async def test_one_reference_is_counted_once(db: Database) -> None:
    user, reference = secrets.randbits(40), f"job:{secrets.token_hex(8)}"
    written = await asyncio.gather(*[_record(db, user, 700, reference) for _ in range(8)])
    assert sorted(written) == [False] * 7 + [True]
    async with db.transaction() as session:
        usage = await ledger.usage(session, user_id=user, free_characters=1000)
    assert (usage.used, usage.free_remaining) == (700, 300)


async def test_the_free_quota_never_goes_below_zero(db: Database) -> None:
    user = secrets.randbits(40)
    await _record(db, user, 5000, f"job:{secrets.token_hex(8)}")
    async with db.transaction() as session:
        usage = await ledger.usage(session, user_id=user, free_characters=1000)
    assert (usage.used, usage.free_remaining) == (5000, 0)


@pytest.mark.parametrize("statement", ["UPDATE ledger_entries SET characters = 1", "DELETE FROM ledger_entries"])
async def test_entries_are_never_changed(db: Database, statement: str) -> None:
    with pytest.raises(DBAPIError, match="never changed"):
        async with db.transaction() as session:
            await session.execute(text(statement))
