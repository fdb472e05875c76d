"""Proving an e-mail address, and getting in again when the password is lost or has to be changed."""

from dataclasses import dataclass
from urllib.parse import urlencode
from uuid import UUID

from sqlalchemy import func, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.background import Background
from backend.kit.db import Database, after_commit
from backend.kit.mail import Mail, Mailer
from backend.kit.owner import Owner
from backend.users import mails, one_use_tokens, passwords, queries, service, sessions
from backend.users.errors import EmailAlreadyVerified, LinkNotValid, LocalAccount, MailSentJustNow, WrongPassword
from backend.users.models import User
from backend.users.one_use_tokens import LIFETIMES, Purpose

_PAGES: dict[Purpose, str] = {"verify_email": "verify-email", "reset_password": "reset-password"}


@dataclass(frozen=True, slots=True)
class Post:
    """Sends mails beside the answers, after the commit of what they tell."""

    mailer: Mailer
    background: Background
    frontend_url: str

    def page(self, path: str, **fields: str) -> str:
        """The address of a page of the dashboard."""
        query = f"?{urlencode(fields)}" if fields else ""
        return f"{self.frontend_url.rstrip('/')}/{path}{query}"

    def send_after_commit(self, session: AsyncSession, mail: Mail) -> None:
        async def start() -> None:
            self.background.start(self._send(mail))

        after_commit(session, start)

    async def _send(self, mail: Mail) -> None:
        await self.mailer.send(mail)


async def send_verification(session: AsyncSession, post: Post, user: User) -> None:
    """Raises EmailAlreadyVerified, MailSentJustNow, LocalAccount."""
    if user.email == service.LOCAL_EMAIL:
        raise LocalAccount()
    if user.email_verified_at is not None:
        raise EmailAlreadyVerified()
    if not await _mail_link(session, post, user, "verify_email"):
        raise MailSentJustNow()


async def verify_email(session: AsyncSession, token: str) -> User:
    """Raises LinkNotValid."""
    user_id = await one_use_tokens.use(session, token, "verify_email")
    if user_id is None:
        raise LinkNotValid()
    user = await session.get_one(User, user_id, with_for_update={"key_share": True})
    if user.email_verified_at is None:
        user.email_verified_at = await session.scalar(func.now().select())
    await session.flush()
    return user


async def send_reset(db: Database, post: Post, email: str) -> None:
    """Mails a link when there is such an account, else does nothing. Run beside the answer, it tells nobody which."""
    async with db.transaction() as session:
        user = await queries.find_by_email(session, email)
        if user is not None and user.is_active and user.email != service.LOCAL_EMAIL:
            await _mail_link(session, post, user, "reset_password")


async def reset_password(db: Database, post: Post, *, token: str, password: str) -> None:
    """Sets the password and ends all sessions. No connection is held while it is hashed. Raises LinkNotValid."""
    async with db.transaction() as session:
        if not await one_use_tokens.is_good(session, token, "reset_password"):
            raise LinkNotValid()
    hashed = await passwords.hash_password(password)
    async with db.transaction() as session:
        user_id = await one_use_tokens.use(session, token, "reset_password")
        if user_id is None:
            raise LinkNotValid()
        # Whoever opened the link reads this address's mail.
        values = {"password_hash": hashed, "email_verified_at": func.coalesce(User.email_verified_at, func.now())}
        await session.execute(update(User).where(User.id == user_id).values(values))
        await sessions.end_others(session, user_id)
        await _tell_of_change(session, post, await session.get_one(User, user_id))


async def change_password(
    db: Database, post: Post, owner: Owner, *, current_password: str, new_password: str, login: UUID
) -> None:
    """Sets the password and ends the user's other sessions and open reset links. Raises WrongPassword."""
    before = await service.check_password(db, owner, current_password)
    hashed = await passwords.hash_password(new_password)
    async with db.transaction() as session:
        changed = await session.execute(
            update(User)
            .where(User.id == owner.id, User.password_hash == before.password_hash)
            .values(password_hash=hashed)
            .returning(User.id)
        )
        if changed.scalar_one_or_none() is None:  # somebody else changed it meanwhile
            raise WrongPassword()
        await sessions.end_others(session, owner.id, but=login)
        await one_use_tokens.end_all(session, owner.id, "reset_password")
        await _tell_of_change(session, post, before)


async def _mail_link(session: AsyncSession, post: Post, user: User, purpose: Purpose) -> bool:
    token = await one_use_tokens.issue(session, user.id, purpose)
    if token is None:
        return False
    hours = int(LIFETIMES[purpose].total_seconds() // 3600)
    link = post.page(_PAGES[purpose], token=token)
    post.send_after_commit(session, mails.compose(purpose, user, link=link, hours=hours))
    return True


async def _tell_of_change(session: AsyncSession, post: Post, user: User) -> None:
    mail = mails.compose("password_changed", user, link=post.page("forgot-password"))
    post.send_after_commit(session, mail)
