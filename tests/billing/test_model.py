"""The ledger against an auditor's model: random histories of one account, checked after every operation."""

import asyncio

from backend.billing import auditing
from backend.kit.config import Settings
from backend.kit.db import Database
from tests.billing import ledger_machine


async def test_random_histories_are_what_the_model_says(settings: Settings, db: Database) -> None:
    """A few of those that `./run bench ledger_model` runs; in a thread, because they have a loop of their own."""
    before = (await auditing.verify(db)).users  # those in which other tests planted faults
    histories, operations = await asyncio.to_thread(
        ledger_machine.run, settings.database_url, first_seed=1, seeds=2, histories=8, steps=60
    )
    assert histories >= 16
    assert operations >= 16 * 60
    assert (await auditing.verify(db)).users == before
