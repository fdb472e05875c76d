"""A running training as its worker sees it, with checkpoints to store, for tests of what becomes of them."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from backend.datasets import versions
from backend.jobs import queue
from backend.jobs.events import EventLog
from backend.jobs.models import Job
from backend.jobs.running import JobRun
from backend.jobs.states import JobState
from backend.kit.db import Database
from backend.projects.models import Project
from backend.storage import Storage
from backend.training import checkpoint_store, fine_tunings, hyperparams
from backend.training.checkpoint_uploads import CheckpointUploads
from backend.training.fine_tunings import Wanted
from backend.training.models import Artifact, FineTuning
from tests.conftest import Tenant, stored_keys
from tests.training.conftest import plant_dataset


def make(out: Path, step: int, *, size: int = 1000) -> Path:
    """A checkpoint as the trainer leaves it, with what lies beside it."""
    folder = out / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(step.to_bytes(4) * (size // 4))
    (folder / "state.json").write_text(json.dumps({"step": step}))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"files": digests}))
    (out / "training_config.json").write_text('{"fingerprint": "f"}')
    (out / "baseline.json").write_text('{"eval_loss": 2.0}')
    return folder


class SlowStorage(Storage):
    """The real one, told when to go on."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner._store)
        self.gate = asyncio.Event()
        self.begun: list[str] = []

    async def put_file(self, key: str, path: Path) -> None:
        self.begun.append(key)
        await self.gate.wait()
        await super().put_file(key, path)


@dataclass
class Scene:
    """One running training, as its worker sees it."""

    app: Any
    db: Database
    storage: Storage
    run: JobRun
    project: Project
    fine_tuning: FineTuning
    out: Path

    def uploads(self, storage: Storage | None = None, *, max_mb: int = 100) -> CheckpointUploads:
        return CheckpointUploads(
            self.run,
            storage or self.storage,
            self.project,
            self.fine_tuning,
            self.out,
            max_mb=max_mb,
            grace_seconds=5,
        )

    async def store(self, *steps: int) -> None:
        for step in steps:
            make(self.out, step)
            async with self.uploads() as uploads:
                await uploads.offer(step)
                await self.idle(uploads)

    async def idle(self, uploads: CheckpointUploads) -> None:
        if uploads._task is not None:
            await asyncio.wait({uploads._task}, timeout=10)

    async def artifacts(self) -> list[Artifact]:
        async with self.db.transaction() as session:
            rows = await session.scalars(
                select(Artifact).where(Artifact.fine_tuning_id == self.fine_tuning.id, Artifact.role == "checkpoint")
            )
            return list(rows.all())

    async def steps(self) -> set[int]:
        return {int(row.filename.partition("/")[0]) for row in await self.artifacts()}

    async def files(self) -> set[str]:
        return set(await stored_keys(self.app, f"projects/{self.project.public_id}/runs"))

    async def again(self, path: Path) -> "Scene":
        """The next attempt, on a worker with an empty disk."""
        async with self.db.transaction() as session:
            job = update(Job).where(Job.id == self.run.claim.id)
            await session.execute(job.values(fence=Job.fence + 1))
        claim = replace(self.run.claim, fence=self.run.claim.fence + 1)
        return replace(self, run=JobRun(self.db, self.run._events, claim), out=path / "other" / "out")

    async def bring(self) -> None:
        await checkpoint_store.bring_newest(self.run, self.storage, self.fine_tuning, self.out)

    async def said(self) -> list[str]:
        events = await self.run._events.read(self.run.claim.public_id)
        return [event.data.get("message", "") for event in events]


@pytest.fixture
async def scene(app: Any, db: Database, tenant: Tenant, tmp_path: Path) -> AsyncIterator[Scene]:
    services = app.state.services
    public_id = await tenant.make_project(name="Lamps")
    dataset = await plant_dataset(db, public_id)
    async with db.transaction() as session:
        project = (await session.scalars(select(Project).where(Project.public_id == public_id))).one()
        version, _ = await versions.freeze(session, dataset)
        wanted = Wanted(name="Lamps", description=None, provider="local", model="tiny", method="lora")
        values = hyperparams.complete({})
        fine_tuning, job = await fine_tunings.start_local(
            session, services.broker, project, version, wanted, hyperparameters=values
        )
    async with db.transaction() as session:
        claim = await queue.claim(session, job.id, worker="one", lease_seconds=600)
    assert claim is not None
    run = JobRun(db, EventLog(services.redis), claim)
    yield Scene(app, db, services.storage, run, project, fine_tuning, tmp_path / "one" / "out")
    async with db.transaction() as session:
        job = await session.get(Job, job.id, populate_existing=True)
        if job is not None and job.state == JobState.RUNNING:
            await session.execute(update(Job).where(Job.id == job.id).values(state=JobState.CANCELLED))
