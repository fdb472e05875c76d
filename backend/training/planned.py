"""Runs that are made before their dataset is: their place is taken, and they start once it is ready."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.datasets.models import Dataset
from backend.kit.broker import Broker
from backend.projects.models import Project
from backend.providers.base_models import ModelLibrary
from backend.training import fine_tunings, freezing, queries
from backend.training.fine_tunings import LOCAL, Wanted
from backend.training.freezing import Checked
from backend.training.models import FineTuning
from backend.training.statuses import Status


async def plan(
    session: AsyncSession,
    project: Project,
    dataset: Dataset,
    wanted: Wanted,
    checked: Checked,
    system_prompt: str | None = None,
) -> FineTuning:
    """A queued run without version and job. It counts against the plan, whose room the caller has seen to."""
    run = FineTuning(
        project_id=project.id,
        dataset_id=dataset.id,
        name=wanted.name,
        description=wanted.description,
        provider=wanted.provider,
        model=wanted.model,
        method=wanted.method if wanted.provider == LOCAL else "supervised",
        hyperparameters=checked.hyperparameters,
        memory=checked.memory,
        system_prompt=system_prompt,
    )
    session.add(run)
    await session.flush()
    return run


async def start(session: AsyncSession, broker: Broker, library: ModelLibrary, run_id: int, wanted: Wanted) -> bool:
    """Starts a planned run on its dataset as it is now; False when it is no longer planned.

    What was checked when it was planned is checked again, but for its room in the plan, which it has. Raises
    ModelNotTrainable, BadHyperparameter, NoProviderKey, DatasetNotReady, DatasetTooSmall, DatasetTooLarge,
    TrainingAlreadyRunning.
    """
    found = await session.get(FineTuning, run_id)
    if found is None:
        return False
    project = await session.get_one(Project, found.project_id)
    checked = await fine_tunings.check(session, library, project, wanted, found.dataset_id)
    await fine_tunings.lock_project(session, project)
    run = await _lock(session, run_id)
    if run is None:
        return False
    version = await freezing.freeze(session, run.dataset_id, checked)
    freezing.require_size(checked, version)
    run.dataset_version, run.memory = version.number, checked.memory
    await session.flush()
    await fine_tunings.enqueue(session, broker, project, run)
    return True


async def give_up(
    session: AsyncSession,
    run_id: int,
    status: Status,
    message: str | None,
    code: str | None = None,
    context: Mapping[str, Any] | None = None,
) -> bool:
    """Ends a run that will never start; False when it has started, ended or gone."""
    run = await _lock(session, run_id)
    if run is None:
        return False
    fine_tunings.end(run, status, message, code, context)
    await session.flush()
    return True


async def _lock(session: AsyncSession, run_id: int) -> FineTuning | None:
    return await session.scalar(
        select(FineTuning)
        .where(FineTuning.id == run_id, queries.IS_PLANNED)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
