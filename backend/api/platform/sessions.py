"""The caller's logins: where they are, and ending them."""

from datetime import datetime

from fastapi import APIRouter, Response
from pydantic import BaseModel

from backend.api.auth import LoginDep, OwnerDep
from backend.api.errors import error_responses
from backend.api.platform.deps import RowId, WindowDep, shown
from backend.api.session import SessionDep
from backend.users import sessions
from backend.users.models import UserSession
from backend.users.tokens import Claims

router = APIRouter(prefix="/users/me/sessions", tags=["sessions"])


class SessionOut(BaseModel):
    id: int
    user_agent: str
    created_at: datetime
    last_used_at: datetime | None  # when its tokens were last made or refreshed
    expires_at: datetime
    is_current: bool


class EndedOut(BaseModel):
    ended: int


@router.get("", responses=error_responses(401, 403))
async def list_sessions(
    owner: OwnerDep, claims: LoginDep, session: SessionDep, window: WindowDep, response: Response
) -> list[SessionOut]:
    rows = shown(response, window, await sessions.list_sessions(session, owner))
    return [_session_out(row, claims) for row in rows]


@router.delete("", responses=error_responses(401, 403))
async def end_other_sessions(owner: OwnerDep, claims: LoginDep, session: SessionDep) -> EndedOut:
    """Ends all sessions but the one that asks."""
    return EndedOut(ended=await sessions.end_others(session, owner.id, but=claims.session if claims else None))


@router.delete("/{session_id}", status_code=204, responses=error_responses(401, 403, 404))
async def end_session(session_id: RowId, owner: OwnerDep, _: LoginDep, session: SessionDep) -> None:
    """Its access and refresh tokens die at once; the caller's own session is no exception."""
    await sessions.end(session, owner, session_id)


def _session_out(row: UserSession, claims: Claims | None) -> SessionOut:
    return SessionOut(
        id=row.id,
        user_agent=row.user_agent,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
        is_current=claims is not None and row.public_id == claims.session,
    )
