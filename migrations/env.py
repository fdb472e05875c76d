"""Alembic's environment: one connection, one transaction, one migrator at a time."""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

import backend.models

# Any number will do, as long as nothing else in the database locks it.
LOCK = 7_203_117_020


def migrate(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    context.configure(
        connection=connection,
        target_metadata=backend.models.Base.metadata,
        compare_type=True,
        compare_server_default=True,
        transactional_ddl=True,
    )
    context.run_migrations()


async def run() -> None:
    url = context.config.attributes.get("database_url")
    if url is None:
        from backend.kit.config import get_settings

        url = get_settings().database_url
    engine = create_async_engine(url, poolclass=pool.NullPool, hide_parameters=True)
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(run())
