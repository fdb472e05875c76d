"""Personal access tokens: what machines log in with. Shown once, kept as a digest, revocable."""

import secrets
import string
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.background import Background
from backend.kit.db import Database, fetch
from backend.kit.owner import Owner
from backend.users.errors import TokenNotFound, TooManyTokens
from backend.users.models import PersonalAccessToken, User
from backend.users.tokens import PERSONAL_PREFIX, digest

RANDOM_CHARACTERS = 40
MAXIMUM = 50
_ALPHABET = string.ascii_letters + string.digits
_SHOWN_CHARACTERS = 12
_REMEMBERED = 10_000
# Plain SQL: this runs on every request of a machine. The unique index on the digest finds the row.
_OWNER_OF_TOKEN = """
SELECT u.id, u.public_id, t.id, t.last_used_at IS NULL OR t.last_used_at < now() - interval '1 minute'
FROM personal_access_tokens t JOIN users u ON u.id = t.user_id
WHERE t.digest = $1 AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now()) AND u.is_active
"""


async def create(
    session: AsyncSession, owner: Owner, *, name: str, expires_in_days: int | None
) -> tuple[PersonalAccessToken, str]:
    """A row, and the token itself, which nobody can read again. Raises TooManyTokens."""
    # Held until the commit: two simultaneous calls must not both take the last place.
    await session.execute(select(User.id).where(User.id == owner.id).with_for_update(key_share=True))
    live = select(func.count()).select_from(PersonalAccessToken).where(*_live(owner))
    if int(await session.scalar(live) or 0) >= MAXIMUM:
        raise TooManyTokens(limit=MAXIMUM)
    token = PERSONAL_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_CHARACTERS))
    row = PersonalAccessToken(
        user_id=owner.id,
        name=name,
        digest=digest(token),
        prefix=token[:_SHOWN_CHARACTERS],
        expires_at=None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days),
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row, token


async def list_tokens(session: AsyncSession, owner: Owner) -> Sequence[PersonalAccessToken]:
    """Those that work, the oldest first."""
    return (
        await session.scalars(select(PersonalAccessToken).where(*_live(owner)).order_by(PersonalAccessToken.id))
    ).all()


async def revoke(session: AsyncSession, owner: Owner, token_id: int) -> None:
    """Raises TokenNotFound."""
    revoked = await session.execute(
        update(PersonalAccessToken)
        .where(PersonalAccessToken.id == token_id, *_live(owner))
        .values(revoked_at=func.now())
        .returning(PersonalAccessToken.id)
    )
    if revoked.scalar_one_or_none() is None:
        raise TokenNotFound()


class TokenUses:
    """Finds whose token a digest is; notes when it was last used, without making anybody wait for that."""

    def __init__(self, db: Database, background: Background) -> None:
        self._db = db
        self._background = background
        self._noting: set[int] = set()
        self._users: OrderedDict[str, UUID] = OrderedDict()

    async def find_owner(self, session: AsyncSession, token_digest: str) -> Owner | None:
        """The active owner of a token that was neither revoked nor has expired: one indexed query."""
        rows = await fetch(session, _OWNER_OF_TOKEN, token_digest)
        if not rows:
            self._users.pop(token_digest, None)
            return None
        user_id, user, token_id, is_due = rows[0]
        self._users[token_digest] = user
        if len(self._users) > _REMEMBERED:
            self._users.popitem(last=False)
        if is_due and token_id not in self._noting:
            self._noting.add(token_id)
            self._background.start(self._note(token_id))
        return Owner(id=user_id, public_id=user)

    def last_user(self, token_digest: str) -> UUID | None:
        """Whose token it was when this process last looked: good enough to count requests, not to let anybody in."""
        return self._users.get(token_digest)

    async def _note(self, token_id: int) -> None:
        try:
            async with self._db.transaction() as session:
                await session.execute(
                    update(PersonalAccessToken)
                    .where(PersonalAccessToken.id == token_id)
                    .values(last_used_at=func.now())
                )
        finally:
            self._noting.discard(token_id)


def _live(owner: Owner) -> "tuple[ColumnElement[bool], ...]":
    return (
        PersonalAccessToken.user_id == owner.id,
        PersonalAccessToken.revoked_at.is_(None),
        or_(PersonalAccessToken.expires_at.is_(None), PersonalAccessToken.expires_at > func.now()),
    )
