"""What a user's fine-tunings hold outside of this service's tables, when the user leaves."""

import asyncio
import logging
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.config import Settings
from backend.kit.crypto import CannotUnseal, Sealer
from backend.kit.db import Database
from backend.kit.errors import DomainError
from backend.kit.owner import Owner
from backend.projects.models import Project
from backend.training import statuses
from backend.training.models import FineTuning
from backend.training.remote import provider_of

log = logging.getLogger(__name__)

# The user waits for it; what a provider does not carry out until then stays there, and the log has its name.
SECONDS = 20.0


async def withdraw(db: Database, settings: Settings, sealer: Sealer, owner: Owner) -> None:
    """Cancels the user's jobs that run at providers, and deletes the files that were sent for them; never raises.

    Call it while the user's keys are still there. Models that were completed belong to the user's account there.
    """
    async with db.transaction() as session:
        runs = (
            await session.scalars(
                select(FineTuning)
                .join(Project, Project.id == FineTuning.project_id)
                .where(
                    Project.user_id == owner.id,
                    FineTuning.provider != "local",
                    FineTuning.external_id.is_not(None),
                    FineTuning.status.in_(statuses.LIVE),
                )
            )
        ).all()
    await asyncio.gather(*[_withdraw(db, settings, sealer, run) for run in runs])


async def stream_ids(session: AsyncSession, owner: Owner) -> Sequence[UUID]:
    """Under which names the events of the user's fine-tunings are kept."""
    owned = select(FineTuning.public_id).join(Project, Project.id == FineTuning.project_id)
    return (await session.scalars(owned.where(Project.user_id == owner.id))).all()


async def _withdraw(db: Database, settings: Settings, sealer: Sealer, run: FineTuning) -> None:
    assert run.external_id is not None
    try:
        async with asyncio.timeout(SECONDS), provider_of(db, settings, sealer, run) as provider:
            await provider.cancel(run.external_id)
            await provider.forget(run.external_id, run.provider_state)
    except (DomainError, CannotUnseal, TimeoutError) as error:
        # Not the error's words: they may quote what the user wrote.
        log.warning("%s keeps job %s of an account that ends: %s", run.provider, run.external_id, type(error).__name__)
