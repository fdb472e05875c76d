"""What people do with their accounts: register, log in, refresh, log out, change their profile and password."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.db import Database
from backend.kit.owner import Owner
from backend.users import passwords, queries
from backend.users.errors import (
    BadCredentials,
    BadToken,
    EmailTaken,
    RefreshTokenReused,
    WrongPassword,
)
from backend.users.models import User, UserSession
from backend.users.tokens import TokenSigner, digest

LOCAL_EMAIL = "owner@localhost"
# No password verifies against this, so the seeded account can only be used in AUTH_MODE=local.
_NO_PASSWORD = "!"


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long each kind of token lives."""

    access: timedelta
    refresh: timedelta


@dataclass(frozen=True, slots=True)
class Login:
    """A user with a fresh pair of tokens."""

    user: User
    access_token: str
    refresh_token: str


async def register(session: AsyncSession, *, email: str, password: str, name: str, language: str = "fr") -> User:
    """Raises EmailTaken."""
    hashed = await passwords.hash_password(password)
    user = User(email=email, password_hash=hashed, name=name, language=language)
    try:
        async with session.begin_nested():
            session.add(user)
    except IntegrityError as error:
        raise EmailTaken() from error
    return user


async def log_in(
    db: Database, signer: TokenSigner, lifetimes: Lifetimes, *, email: str, password: str, user_agent: str = ""
) -> Login:
    """Checks the password and opens a login. No connection is held while the password is hashed."""
    async with db.transaction() as session:
        user = await queries.find_by_email(session, email)
    known = user is not None and user.password_hash != _NO_PASSWORD
    hashed = user.password_hash if user is not None and known else None
    if not await passwords.verify_password(password, hashed) or user is None or not user.is_active:
        raise BadCredentials()
    now = datetime.now(UTC)
    login = UserSession(
        user_id=user.id,
        refresh_digest="",
        expires_at=now + lifetimes.refresh,
        user_agent=user_agent[:300],
        last_used_at=now,
    )
    async with db.transaction() as session:
        # A password that was changed while it was checked opens nothing: its change ends the sessions that it sees.
        unchanged = select(User.id).where(User.id == user.id, User.password_hash == user.password_hash, User.is_active)
        if await session.scalar(unchanged.with_for_update(read=True)) is None:
            raise BadCredentials()
        session.add(login)
        await session.flush()
        return _issue(signer, lifetimes, user, login)


async def refresh(session: AsyncSession, signer: TokenSigner, lifetimes: Lifetimes, token: str) -> Login:
    """Trades a refresh token for a new pair. A token that was traded before ends its session for everybody."""
    claims = signer.verify("refresh", token)
    # The row lock makes two simultaneous uses of one token take turns: the second one sees a changed digest.
    login = await queries.find_session_for_update(session, claims.session)
    if login is None or login.revoked_at is not None or login.expires_at <= datetime.now(UTC):
        raise BadToken()
    if login.refresh_digest != digest(token):
        await end_session(session, login.public_id)
        raise RefreshTokenReused()
    user = await session.get_one(User, login.user_id)
    if not user.is_active:
        raise BadToken()
    login.last_used_at = datetime.now(UTC)
    login.expires_at = login.last_used_at + lifetimes.refresh
    return _issue(signer, lifetimes, user, login)


async def end_session(session: AsyncSession, login: UUID) -> None:
    """Revokes a login: its access and refresh tokens die at once."""
    await session.execute(
        update(UserSession)
        .where(UserSession.public_id == login, UserSession.revoked_at.is_(None))
        .values(revoked_at=func.now())
    )


async def check_password(db: Database, owner: Owner, password: str) -> User:
    """The user, when it is the right password. No connection is held meanwhile. Raises WrongPassword."""
    async with db.transaction() as session:
        user = await queries.get_user(session, owner)
    if user.password_hash == _NO_PASSWORD or not await passwords.verify_password(password, user.password_hash):
        raise WrongPassword()
    return user


async def change_profile(session: AsyncSession, owner: Owner, changes: dict[str, Any]) -> User:
    """Sets the given fields: name, has_completed_onboarding, language."""
    user = await queries.get_user(session, owner)
    for field, value in changes.items():
        setattr(user, field, value)
    await session.flush()
    return user


async def seed_local_owner(session: AsyncSession) -> Owner:
    """The one owner that AUTH_MODE=local acts for."""
    await session.execute(
        insert(User).values(email=LOCAL_EMAIL, password_hash=_NO_PASSWORD, name="Local owner").on_conflict_do_nothing()
    )
    user = await queries.find_by_email(session, LOCAL_EMAIL)
    assert user is not None
    return Owner(id=user.id, public_id=user.public_id)


def _issue(signer: TokenSigner, lifetimes: Lifetimes, user: User, login: UserSession) -> Login:
    access = signer.sign("access", user=user.public_id, session=login.public_id, lifetime=lifetimes.access)
    refreshed = signer.sign("refresh", user=user.public_id, session=login.public_id, lifetime=lifetimes.refresh)
    login.refresh_digest = digest(refreshed)
    return Login(user=user, access_token=access, refresh_token=refreshed)
