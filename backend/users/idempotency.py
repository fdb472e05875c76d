"""Answers kept under their caller's Idempotency-Key: one row per key, in the transaction of what it stands for."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.db import Database
from backend.kit.owner import Owner
from backend.users.errors import IdempotencyKeyReused
from backend.users.models import IdempotencyKey

KEPT_FOR = timedelta(hours=24)
# Never seen by others: the row is committed with its answer, or not at all.
_UNANSWERED = 0


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What was answered the first time: HTTP status and body."""

    status_code: int
    body: str


async def claim(session: AsyncSession, owner: Owner, key: str, request_sha256: str) -> KeptAnswer | None:
    """None: the key is the caller's to use, and whoever comes with it meanwhile waits for this transaction's end.

    Else the kept answer to the same request. Raises IdempotencyKeyReused when it was another request.
    """
    values = {"user_id": owner.id, "key": key, "request_sha256": request_sha256}
    # An insert beside another transaction's waits here until that one ends: by a commit (the answer is there) or a
    # rollback (the key is free again).
    claiming = insert(IdempotencyKey).values(**values, status_code=_UNANSWERED, response="").on_conflict_do_nothing()
    while True:
        if await session.scalar(claiming.returning(IdempotencyKey.id)) is not None:
            return None
        found = await session.execute(
            select(IdempotencyKey.request_sha256, IdempotencyKey.status_code, IdempotencyKey.response).where(
                *_is(owner, key)
            )
        )
        row = found.one_or_none()
        if row is None:  # it was swept between the two statements
            continue
        if row.request_sha256 != request_sha256:
            raise IdempotencyKeyReused()
        return KeptAnswer(row.status_code, row.response)


async def keep(session: AsyncSession, owner: Owner, key: str, answer: KeptAnswer) -> None:
    """Writes the answer beside its claimed key."""
    await session.execute(
        update(IdempotencyKey).where(*_is(owner, key)).values(status_code=answer.status_code, response=answer.body)
    )


async def release(session: AsyncSession, owner: Owner, key: str) -> None:
    """Frees a claimed key in a transaction that is committed although the request failed."""
    await session.execute(delete(IdempotencyKey).where(*_is(owner, key)))


async def forget_old(db: Database) -> int:
    """Deletes the answers that were kept for KEPT_FOR; returns how many."""
    async with db.transaction() as session:
        gone = await session.scalars(
            delete(IdempotencyKey)
            .where(IdempotencyKey.created_at < func.clock_timestamp() - KEPT_FOR)
            .returning(IdempotencyKey.id)
        )
        return len(gone.all())


def _is(owner: Owner, key: str) -> "tuple[ColumnElement[bool], ColumnElement[bool]]":
    return IdempotencyKey.user_id == owner.id, IdempotencyKey.key == key
