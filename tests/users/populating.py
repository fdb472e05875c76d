"""A row in every table that holds rows of users, with a canary in every text that is long enough for it."""

from datetime import UTC, datetime
from random import randrange
from typing import Any
from uuid import uuid4

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Float, Integer, LargeBinary, String, Table, Uuid
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.models import Base

# Rows of the service itself: who runs, and what ran when.
NOBODYS = {"ticks", "hardware_reports"}
# What the service writes about use and money: it stays, so no text of a user may go there.
LEDGERS = {"accounts", "holds", "ledger_entries", "payments"}
# Of these tables, only these columns can hold a user's words; the others are Stripe's.
WORDS = {"stripe_events": {"payload", "error"}}


async def populate(session: AsyncSession, user_id: int, canary: str) -> dict[str, dict[str, Any]]:
    """Inserts one row per table; returns each with its primary key, by table name."""
    rows: dict[str, dict[str, Any]] = {"users": {"id": user_id}}
    for table in Base.metadata.sorted_tables:
        if table.name in {*NOBODYS, "users"}:
            continue
        held = set() if table.name in LEDGERS else WORDS.get(table.name, set(table.columns.keys()))
        values = {
            column.name: _value(table, column, rows, user_id, canary if column.name in held else "usage")
            for column in table.columns
        }
        given = {name: value for name, value in values.items() if value is not None}
        query = insert(table).values(given)
        if table.name == "accounts":  # work has opened one before
            query = query.on_conflict_do_update(index_elements=["user_id"], set_={"version": 1})
        row = (await session.execute(query.returning(table))).mappings().one()
        rows[table.name] = dict(row)
    return rows


def _value(table: Table, column: "Column[Any]", rows: dict[str, dict[str, Any]], user_id: int, text: str) -> Any:
    if column.name == "user_id":
        return user_id
    if column.identity is not None or column.name in ("created_at", "updated_at"):
        return None
    for key in column.foreign_keys:
        parent = rows.get(key.column.table.name)
        return parent[key.column.name] if parent else None  # a row of its own table, or of a later one: left out
    kind = column.type
    if isinstance(kind, Uuid):
        return uuid4()
    if isinstance(kind, LargeBinary):
        return f"{text} {table.name}".encode()
    if isinstance(kind, JSONB):
        return {"text": text}
    if isinstance(kind, Boolean):
        return True
    if isinstance(kind, DateTime):
        return datetime.now(UTC)
    if isinstance(kind, (BigInteger, Integer, Float)):
        return randrange(1, 2**31) if column.primary_key else 1
    assert isinstance(kind, String), f"say here what to put into a {kind!r} ({table.name}.{column.name})"
    length = kind.length or 200
    if length < len(text):
        return "x"
    return (f"{text}-{uuid4().hex[:6]}" if length > len(text) + 7 else text)[:length]
