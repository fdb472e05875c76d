"""The database: one engine per process, one transaction per request or task, and the only commit of the code base."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import ARRAY, BigInteger, ColumnElement, any_, literal, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import InstrumentedAttribute

from backend.kit.errors import DatabaseUnavailable, DomainError

log = logging.getLogger(__name__)

AfterCommit = Callable[[], Awaitable[None]]
# A process that freezes inside a transaction keeps its locks, and the sweeper skips what is locked: the server ends
# such a transaction. Longer than any of ours waits for its client, and short enough for a rescue within a minute.
FROZEN_SECONDS = 20
_SERVER_SETTINGS = {
    "application_name": "finetuneflow",
    "jit": "off",
    "idle_in_transaction_session_timeout": f"{FROZEN_SECONDS}s",
}
_AFTER_COMMIT = "after_commit"
_DRIVER = "driver"


class Database:
    """An engine with its pool. `transaction()` is the only way to write."""

    def __init__(self, url: str, *, pool_size: int = 10, max_overflow: int = 20, pre_ping: bool = False) -> None:
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_pre_ping=pre_ping,
            pool_recycle=1800,
            # Errors are logged, and parameters hold password hashes and the text of documents.
            hide_parameters=True,
            connect_args={"timeout": 10, "server_settings": _SERVER_SETTINGS},
        )
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Yields a session; commits at the end, rolls back on any exception, then runs what waits for the commit."""
        async with self._sessions() as session:
            try:
                yield session
            except DomainError as error:
                if error.keeps_changes:
                    await session.commit()
                raise
            if not _only_fetched(session):
                await session.commit()
            hooks = _take_hooks(session)
        for hook in hooks:
            try:
                await hook()
            except Exception:
                # The rows are committed, so the caller must not see a failure: sweepers resend and delete what is left.
                log.exception("after-commit action failed")

    async def ping(self) -> None:
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()


async def fetch(session: AsyncSession, statement: str, *values: Any) -> Sequence[Any]:
    """Rows of one SELECT by the driver itself ($1, $2 ... for values): for the hottest reads, at a third of the cost.

    It runs on the session's connection, so it sees what the session wrote; outside a transaction it opens none.
    Raises DatabaseUnavailable when the connection is lost.
    """
    driver = session.info.get(_DRIVER)
    if driver is None:
        driver = (await (await session.connection()).get_raw_connection()).driver_connection
        session.info[_DRIVER] = driver
    assert driver is not None, "the session's connection is open"
    try:
        rows: Sequence[Any] = await driver.fetch(statement, *values)
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError) as error:
        # SQLAlchemy has not seen this failure: without a word the pool would hand the dead connection out again.
        await (await session.connection()).invalidate()
        raise DatabaseUnavailable() from error
    return rows


def is_one_of(column: "ColumnElement[int] | InstrumentedAttribute[int]", ids: Sequence[int]) -> "ColumnElement[bool]":
    """`column = ANY(ids)` with the ids as one value: an IN list may have no more than 32,767 of them."""
    return column == any_(literal(list(ids), ARRAY(BigInteger)))


def after_commit(session: AsyncSession, action: AfterCommit) -> None:
    """Runs `action` once the session's transaction has been committed, and never when it is rolled back."""
    session.info.setdefault(_AFTER_COMMIT, []).append(action)


def _only_fetched(session: AsyncSession) -> bool:
    """Whether nothing but `fetch` outside a transaction was done, so that there is nothing to commit."""
    driver = session.info.get(_DRIVER)
    return driver is not None and not (
        driver.is_in_transaction() or session.new or session.dirty or session.deleted or _AFTER_COMMIT in session.info
    )


def _take_hooks(session: AsyncSession) -> list[AfterCommit]:
    hooks: list[AfterCommit] = session.info.pop(_AFTER_COMMIT, [])
    return hooks
