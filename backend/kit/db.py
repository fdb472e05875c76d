"""The database: one engine per process, one transaction per request or task, and the only commit of the code base."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from backend.kit.errors import DomainError

log = logging.getLogger(__name__)

AfterCommit = Callable[[], Awaitable[None]]
_AFTER_COMMIT = "after_commit"


class Database:
    """An engine with its pool. `transaction()` is the only way to write."""

    def __init__(self, url: str, *, pool_size: int = 10, max_overflow: int = 20, pre_ping: bool = False) -> None:
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_pre_ping=pre_ping,
            pool_recycle=1800,
            connect_args={"timeout": 10, "server_settings": {"application_name": "finetuneflow", "jit": "off"}},
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
            await session.commit()
            hooks = _take_hooks(session)
        for hook in hooks:
            try:
                await hook()
            except Exception:
                # The rows are committed: whoever sweeps them will find them, so the caller must not see a failure.
                log.exception("after-commit action failed")

    async def ping(self) -> None:
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()


def after_commit(session: AsyncSession, action: AfterCommit) -> None:
    """Runs `action` once the session's transaction has been committed, and never when it is rolled back."""
    session.info.setdefault(_AFTER_COMMIT, []).append(action)


def _take_hooks(session: AsyncSession) -> list[AfterCommit]:
    hooks: list[AfterCommit] = session.info.pop(_AFTER_COMMIT, [])
    return hooks
