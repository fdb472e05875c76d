"""A worker's database: when the worker freezes inside a transaction, the server gives up its locks for it."""

from typing import Any

from sqlalchemy import event

from backend.kit.config import Settings
from backend.kit.db import Database

# A frozen worker's row would stay locked, and the sweeper skips what is locked. Longer than any of our transactions
# waits for its client, and short enough for a rescue within a minute.
FROZEN_SECONDS = 20


def connect(settings: Settings, *, pool_size: int, max_overflow: int) -> Database:
    db = Database(settings.database_url, pool_size=pool_size, max_overflow=max_overflow, pre_ping=True)
    event.listen(db.engine.sync_engine, "connect", _limit_idle_transactions)
    return db


def _limit_idle_transactions(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{FROZEN_SECONDS}s'")
    cursor.close()
    connection.commit()
