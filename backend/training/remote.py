"""The job that hands a fine-tuning over to its provider: files written, looked for, submitted, written down."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

from backend.datasets import exporting, versions
from backend.datasets.provider_formats import ProviderName, TrainingFile
from backend.jobs.errors import LeaseLost
from backend.jobs.running import JobRun
from backend.kit.config import Settings
from backend.kit.crypto import Sealer
from backend.kit.db import Database
from backend.projects import queries as project_queries
from backend.providers.tuning import registry
from backend.providers.tuning.base import (
    ProviderAnswerBroken,
    ProviderRateLimited,
    ProviderUnavailable,
    Submission,
    TuningError,
    TuningJob,
    TuningProvider,
)
from backend.training import queries, statuses
from backend.training.errors import ProviderKeyGone
from backend.training.fine_tunings import SENT
from backend.training.models import FineTuning
from backend.training.statuses import Status
from backend.users import provider_keys
from backend.users.errors import NoProviderKey

FIRST_POLL_SECONDS = 10.0
# What a provider asks to wait is waited for in the job; what is longer is left to its next attempts.
_LONGEST_WAIT_SECONDS = 60.0
_SEED = 42


async def submit(run: JobRun, settings: Settings, sealer: Sealer) -> dict[str, Any]:
    """The submission job. An attempt after one that broke finds what that one created, instead of paying twice."""
    async with run.reading() as session:
        fine_tuning = await session.get_one(FineTuning, int(run.params["fine_tuning_id"]))
        key = await provider_keys.reveal(session, sealer, run.claim.user_id, fine_tuning.provider)
    if fine_tuning.external_id is None:
        folder = settings.data_dir / "runs" / str(fine_tuning.public_id)
        provider = registry.open_provider(settings, fine_tuning.provider, key)
        try:
            await _change(run, fine_tuning, status=Status.PREPARING, started_at=datetime.now(UTC))
            await run.progress(5, "Looking for the job at the provider", force=True)
            found = await provider.find(fine_tuning.public_id)
            submission = found or await _send(run, provider, fine_tuning, folder)
            await _accepted(run, provider, fine_tuning, submission)
        except ProviderRateLimited as error:
            await asyncio.sleep(min(error.retry_after or 0.0, _LONGEST_WAIT_SECONDS))
            raise
        finally:
            await provider.aclose()
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return {"provider": fine_tuning.provider}


@asynccontextmanager
async def provider_of(
    db: Database, settings: Settings, sealer: Sealer, fine_tuning: FineTuning
) -> AsyncIterator[TuningProvider]:
    """The provider of a run, with its owner's key, which lives no longer than this. Raises ProviderKeyGone."""
    async with db.transaction() as session:
        project = await project_queries.get_by_id(session, fine_tuning.project_id)
    async with provider_for(db, settings, sealer, project.user_id, fine_tuning.provider) as provider:
        yield provider


@asynccontextmanager
async def provider_for(
    db: Database, settings: Settings, sealer: Sealer, user_id: int, name: str
) -> AsyncIterator[TuningProvider]:
    """As provider_of, for a user whose run may be gone."""
    async with db.transaction() as session:
        try:
            key = await provider_keys.reveal(session, sealer, user_id, name)
        except NoProviderKey as error:
            raise ProviderKeyGone(provider=name) from error
    provider = registry.open_provider(settings, name, key)
    try:
        yield provider
    finally:
        await provider.aclose()


async def _send(run: JobRun, provider: TuningProvider, fine_tuning: FineTuning, folder: Path) -> Submission:
    await run.progress(20, "Writing the training file", force=True)
    training = await _write(run, fine_tuning, "train", folder / "training.jsonl")
    validation = await _write(run, fine_tuning, "eval", folder / "validation.jsonl")
    assert training is not None, "a frozen version has training examples"
    job = TuningJob(
        our_id=fine_tuning.public_id,
        model=fine_tuning.model,
        training_file=training,
        validation_file=validation,
        suffix=_suffix(fine_tuning.name),
        hyperparameters=fine_tuning.hyperparameters,
        seed=_SEED,
    )
    await run.progress(40, "Sending the files to the provider", force=True)
    # From here on the provider may have a job of which nobody here knows.
    await _change(run, fine_tuning, provider_state={**fine_tuning.provider_state, SENT: True})
    try:
        return await provider.submit(job)
    except (ProviderUnavailable, ProviderAnswerBroken):
        # At once, because a worker that dies before the next attempt leaves the question to the poller.
        with suppress(TuningError):
            found = await provider.find(fine_tuning.public_id)
            if found is not None:
                return found
        raise
    except TuningError:
        await _change(run, fine_tuning, provider_state={**fine_tuning.provider_state, SENT: False})
        raise


async def _write(run: JobRun, fine_tuning: FineTuning, split: Literal["train", "eval"], path: Path) -> Path | None:
    """The examples of one half as the provider takes them; None when there are none. Raises ExportLimits."""
    number = fine_tuning.dataset_version
    assert number is not None, "a run at a provider is made with a version"
    async with run.reading() as session:
        version = await versions.get(session, fine_tuning.dataset_id, number)
    if split == "eval" and not version.eval_count:
        return None
    name = cast(ProviderName, fine_tuning.provider)
    shaped = TrainingFile(name, fine_tuning.model, is_training=split == "train")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        await exporting.write_training_file(
            run.reading, fine_tuning.dataset_id, file, shaped, split=split, version=number
        )
    return path


def _suffix(name: str) -> str:
    """What stands in the name of the model: letters, digits and hyphens, which every provider takes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


async def _accepted(run: JobRun, provider: TuningProvider, fine_tuning: FineTuning, submission: Submission) -> None:
    now = datetime.now(UTC)
    try:
        await _change(
            run,
            fine_tuning,
            external_id=submission.external_id,
            provider_state={SENT: True, "job": submission.state},
            submitted_at=now,
            next_poll_at=now + timedelta(seconds=FIRST_POLL_SECONDS),
        )
    except LeaseLost:
        # Somebody else goes on with it, unless it was deleted: then nobody would ever stop it.
        async with run.reading() as session:
            gone = await session.get(FineTuning, fine_tuning.id) is None
        if gone:
            await provider.cancel(submission.external_id)
        raise


async def _change(run: JobRun, fine_tuning: FineTuning, **values: Any) -> None:
    """Writes under the fence of the job; a run that has ended meanwhile stays as it is. Raises LeaseLost."""
    async with run.writing() as session:
        row = await queries.find_by_job(session, run.claim.id, lock=True)
        if row is None or row.status in statuses.ENDED:
            raise LeaseLost()
        if "status" in values:
            values["status"] = statuses.furthest(row.status, values["status"])
        for name, value in values.items():
            setattr(row, name, value)
