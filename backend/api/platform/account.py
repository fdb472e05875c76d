"""The whole account: taken along as one archive, or deleted for good."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from backend.api.auth import LoginDep, OwnerDep, authenticate
from backend.api.errors import error_responses
from backend.api.platform.auth import GivenPassword
from backend.api.rate_limit import count_login
from backend.api.services import Services, ServicesDep
from backend.api.session import SessionDep
from backend.billing import charging, reconciling
from backend.jobs import queries as job_queries
from backend.jobs.states import JobState
from backend.projects import queries as project_queries
from backend.projects import service as projects
from backend.training import leaving
from backend.users import deleting, service
from backend.users.errors import LocalAccount
from backend.users.exporting import stream_archive

router = APIRouter(prefix="/users/me", tags=["account"])

_ZIP = "application/zip"
_LATE_SECONDS = 20.0


class DeletionIn(BaseModel):
    password: GivenPassword


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {_ZIP: {"schema": {"type": "string", "format": "binary"}}}}, **error_responses(401)},
)
async def export_account(owner: OwnerDep, session: SessionDep, services: ServicesDep) -> StreamingResponse:
    """Every row and every file of the caller as one zip. Passwords, tokens and keys are left out."""
    folders = [projects.folder_of(project) for project in await project_queries.list_of_owner(session, owner)]
    archive: AsyncIterator[bytes] = stream_archive(services.db, services.storage, owner.id, folders)
    name = f"finetuneflow-export-{datetime.now(UTC):%Y-%m-%d}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(archive, media_type=_ZIP, headers=headers)


@router.delete("", status_code=204, responses=error_responses(400, 401, 403))
async def delete_account(body: DeletionIn, request: Request, claims: LoginDep, services: ServicesDep) -> None:
    """Deletes projects, files, models, keys and logins for good, running jobs cancelled first.

    What was used stays in the ledger under the account's number, without a name. Not with a personal access token, and
    not in AUTH_MODE=local.
    """
    if claims is None or services.local_owner is not None:
        raise LocalAccount()
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
    await count_login(request, services.settings, str(owner.public_id))
    user = await service.check_password(services.db, owner, body.password)
    await leaving.withdraw(services.db, services.settings, services.sealer, owner)
    async with services.db.transaction() as session:
        # From here on nobody logs in, and no project is made: both wait for this row.
        await deleting.lock(session, owner)
        await job_queries.lock_live(session, owner.id)
        jobs = await job_queries.list_of_owner(session, owner)
        streams = [*(job for job, _ in jobs), *await leaving.stream_ids(session, owner)]
        for project in await project_queries.list_of_owner(session, owner):
            await projects.delete(session, services.storage, services.events, project)
        await deleting.delete(session, services.post, user)
        await charging.release_of_user(session, owner.id)
        customer = await reconciling.forget_user(session, owner.id)
    if customer is not None and services.stripe.configured:
        services.background.start(reconciling.drop_customer(services.stripe, customer))
    await _delete_streams(services, streams)
    if any(state == JobState.RUNNING for _, state in jobs):
        services.background.start(_delete_late_events(services, streams))


async def _delete_late_events(services: Services, streams: Sequence[UUID]) -> None:
    """Whoever works on a job sees within seconds that it is gone, and may tell something until then."""
    await asyncio.sleep(_LATE_SECONDS)
    await _delete_streams(services, streams)


async def _delete_streams(services: Services, streams: Sequence[UUID]) -> None:
    for stream in streams:
        await services.events.delete(stream)
