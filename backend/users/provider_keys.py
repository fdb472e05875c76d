"""A user's keys at providers: kept sealed, shown masked, opened only where a provider is called."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.crypto import CannotUnseal, Sealed, Sealer
from backend.kit.db import Database
from backend.kit.owner import Owner
from backend.providers import keys
from backend.users.errors import NoProviderKey, ProviderKeyNotFound
from backend.users.models import ProviderKey

log = logging.getLogger(__name__)

_ROTATED_AT_ONCE = 200


async def put(
    db: Database, sealer: Sealer, owner: Owner, *, provider: str, key: str, base_url: str
) -> tuple[ProviderKey, bool]:
    """Checks, verifies and keeps a key; the second value says whether the provider had none before.

    No transaction is open while the provider is asked. Raises UnknownProvider, BadKeyFormat, KeyRefused.
    """
    key = keys.checked(provider, key)
    verified = await keys.verify(provider, key, base_url=base_url)
    sealed = sealer.seal(key, bound_to=_binding(owner.id, provider))
    values = {
        "key_id": sealed.key_id,
        "ciphertext": sealed.ciphertext,
        "masked": keys.masked(provider, key),
        "verified_at": datetime.now(UTC) if verified else None,
    }
    async with db.transaction() as session:
        before = await _find(session, owner.id, provider)
        await session.execute(
            insert(ProviderKey)
            .values(user_id=owner.id, provider=provider, **values)
            .on_conflict_do_update(index_elements=["user_id", "provider"], set_=values)
        )
        if before is not None:
            await session.refresh(before)
        row = before or await _find(session, owner.id, provider)
        assert row is not None
        return row, before is None


async def list_keys(session: AsyncSession, owner: Owner) -> Sequence[ProviderKey]:
    return (
        await session.scalars(select(ProviderKey).where(ProviderKey.user_id == owner.id).order_by(ProviderKey.id))
    ).all()


async def remove(session: AsyncSession, owner: Owner, provider: str) -> None:
    """Raises UnknownProvider, ProviderKeyNotFound."""
    keys.kind_of(provider)
    gone = await session.execute(
        delete(ProviderKey)
        .where(ProviderKey.user_id == owner.id, ProviderKey.provider == provider)
        .returning(ProviderKey.id)
    )
    if gone.scalar_one_or_none() is None:
        raise ProviderKeyNotFound(provider=provider)


async def require(session: AsyncSession, user_id: int, provider: str) -> None:
    """Raises NoProviderKey unless the user has a key; opens nothing."""
    if await _find(session, user_id, provider) is None:
        raise NoProviderKey(provider=provider)


async def reveal(session: AsyncSession, sealer: Sealer, user_id: int, provider: str) -> str:
    """The key itself, for the one call that needs it. Raises NoProviderKey, CannotUnseal."""
    row = await _find(session, user_id, provider)
    if row is None:
        raise NoProviderKey(provider=provider)
    return sealer.open(Sealed(row.key_id, row.ciphertext), bound_to=_binding(user_id, provider))


async def rotate(db: Database, sealer: Sealer) -> tuple[int, int]:
    """Seals anew, under the newest key, what older ones sealed; returns how many, and how many none of them opens.

    Can be stopped and run again.
    """
    rotated, lost, last = 0, 0, 0
    while True:
        async with db.transaction() as session:
            rows = (
                await session.scalars(
                    select(ProviderKey)
                    .where(ProviderKey.key_id != sealer.newest, ProviderKey.id > last)
                    .order_by(ProviderKey.id)
                    .limit(_ROTATED_AT_ONCE)
                    .with_for_update()
                )
            ).all()
            for row in rows:
                last = row.id
                bound_to = _binding(row.user_id, row.provider)
                try:
                    key = sealer.open(Sealed(row.key_id, row.ciphertext), bound_to=bound_to)
                except CannotUnseal as error:
                    log.error("the %s key of user %s cannot be opened: %s", row.provider, row.user_id, error)
                    lost += 1
                    continue
                sealed = sealer.seal(key, bound_to=bound_to)
                row.key_id, row.ciphertext = sealed.key_id, sealed.ciphertext
                rotated += 1
        if not rows:
            return rotated, lost


async def _find(session: AsyncSession, user_id: int, provider: str) -> ProviderKey | None:
    return await session.scalar(
        select(ProviderKey).where(ProviderKey.user_id == user_id, ProviderKey.provider == provider)
    )


def _binding(user_id: int, provider: str) -> str:
    return f"user:{user_id}:provider:{provider}"
