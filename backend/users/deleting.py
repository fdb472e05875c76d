"""The end of an account: its row, and by it every login, token, key and plan."""

from sqlalchemy import delete as delete_rows
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.errors import Unauthorized
from backend.kit.owner import Owner
from backend.users import mails
from backend.users.models import User
from backend.users.recovery import Post


async def lock(session: AsyncSession, owner: Owner) -> None:
    """Holds the account until the transaction ends: nothing new comes to refer to it. Raises Unauthorized."""
    if await session.scalar(select(User.id).where(User.id == owner.id).with_for_update()) is None:
        raise Unauthorized()


async def delete(session: AsyncSession, post: Post, user: User) -> None:
    """Deletes what hangs on the user alone, and tells the address; call it after the projects were deleted."""
    await session.execute(delete_rows(User).where(User.id == user.id))
    post.send_after_commit(session, mails.compose("account_deleted", user))
