"""What fine-tunings hold outside of this service's tables, when their project or their user goes."""

import asyncio
import logging
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.background import Background
from backend.kit.config import Settings
from backend.kit.crypto import CannotUnseal, Sealer
from backend.kit.db import Database, after_commit
from backend.kit.errors import DomainError
from backend.kit.owner import Owner
from backend.projects.models import Project
from backend.training import statuses
from backend.training.fine_tunings import LOCAL
from backend.training.models import FineTuning
from backend.training.remote import provider_for

log = logging.getLogger(__name__)

# The user waits for it; what a provider does not carry out until then stays there, and the log has its name.
SECONDS = 20.0


async def withdraw(db: Database, settings: Settings, sealer: Sealer, owner: Owner) -> None:
    """Cancels the user's jobs that run at providers, and deletes the files that were sent for them; never raises.

    Call it while the user's keys are still there. Models that were completed belong to the user's account there.
    """
    async with db.transaction() as session:
        runs = (await session.scalars(_at_providers().where(Project.user_id == owner.id))).all()
    await asyncio.gather(*[_withdraw(db, settings, sealer, owner.id, run) for run in runs])


async def withdraw_project(
    session: AsyncSession, background: Background, db: Database, settings: Settings, sealer: Sealer, project: Project
) -> None:
    """As `withdraw`, for one project that is deleted in this transaction: the providers are asked after its commit."""
    runs = (await session.scalars(_at_providers().where(Project.id == project.id))).all()
    user_id = project.user_id

    async def withdraw_all() -> None:
        await asyncio.gather(*[_withdraw(db, settings, sealer, user_id, run) for run in runs])

    async def start() -> None:
        background.start(withdraw_all())

    if runs:
        after_commit(session, start)


async def stream_ids(session: AsyncSession, owner: Owner) -> Sequence[UUID]:
    """Under which names the events of the user's fine-tunings are kept."""
    owned = select(FineTuning.public_id).join(Project, Project.id == FineTuning.project_id)
    return (await session.scalars(owned.where(Project.user_id == owner.id))).all()


def _at_providers() -> Select[FineTuning]:
    return (
        select(FineTuning)
        .join(Project, Project.id == FineTuning.project_id)
        .where(
            FineTuning.provider != LOCAL,
            FineTuning.external_id.is_not(None),
            FineTuning.status.in_(statuses.LIVE),
        )
    )


async def _withdraw(db: Database, settings: Settings, sealer: Sealer, user_id: int, run: FineTuning) -> None:
    assert run.external_id is not None
    try:
        async with asyncio.timeout(SECONDS), provider_for(db, settings, sealer, user_id, run.provider) as provider:
            await provider.cancel(run.external_id)
            await provider.forget(run.external_id, run.provider_state.get("job", {}))
    except (DomainError, CannotUnseal, TimeoutError) as error:
        # Not the error's words: they may quote what the user wrote.
        log.warning("%s keeps job %s, whose project is gone: %s", run.provider, run.external_id, type(error).__name__)
