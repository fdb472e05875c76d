"""A whole machine that trains, of real processes: servers, workers with disks of their own, and one run on it."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import text

from backend.datasets import versions
from backend.embedded.child import wait_ready
from backend.embedded.servers import Servers
from backend.jobs import service
from backend.jobs.events import EventLog
from backend.jobs.models import Job
from backend.kit import redis as kit_redis
from backend.projects.models import Project
from backend.training import data_files, fine_tunings, hyperparams
from backend.training.fine_tunings import Wanted
from backend.training.models import FineTuning
from tests.contracts import tiny_llama
from tests.faults.plant import QUIET, REPOSITORY, Plant, patience
from tests.training.conftest import plant_dataset

MODEL = "tiny-lamps"
HYPERPARAMETERS = hyperparams.complete(
    {
        "num_epochs": 30,
        "per_device_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_seq_length": 64,
        "early_stopping_patience": 0,
        "keep": "last",
    }
)
TRAIN, HELD_OUT = 40, 4
SWEEP_SECONDS = 1.0


class TrainingPlant(Plant):
    """`disk` names a worker and its own data folder; storage and base models are shared by all."""

    def __init__(self, servers: Servers, folder: Path, *, checkpoint_seconds: float = 0.4) -> None:
        super().__init__(servers.database_url, folder, aof=True)
        self.servers = servers
        self.checkpoint_seconds = checkpoint_seconds
        self.run_id = 0
        tiny_llama.write(folder / "models" / MODEL, "How bright is lamp 7? It has 7 lumens.\n" * 5)

    async def __aenter__(self) -> "TrainingPlant":
        await super().__aenter__()
        # The servers of tests are told not to wait for their disk. This one is killed, and must keep what it promised.
        async with self.db.transaction() as session:
            await session.execute(text("ALTER DATABASE finetuneflow SET synchronous_commit = on"))
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *failure: object) -> None:
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        await super().__aexit__(*failure)

    async def _sweep(self) -> None:
        """What beat and the control worker do, from here: what is killed are those that train."""
        redis = kit_redis.connect(self.valkey.url())
        try:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                with contextlib.suppress(Exception):  # a server is away
                    await service.sweep(
                        self.db, self.broker, redis, period_seconds=SWEEP_SECONDS, resend_seconds=SWEEP_SECONDS
                    )
        finally:
            await redis.aclose()

    async def start_run(self, **changes: Any) -> int:
        """A project with a dataset and a queued training; returns the job's number."""
        async with self.db.transaction() as session:
            project = Project(
                user_id=self.user_id,
                name="Lamps",
                task_type="qa",
                config={},
                stage="draft",
                base_model_id=MODEL,
                model_info={"model_id": MODEL, "valid": True},
            )
            session.add(project)
            await session.flush()
            public_id: UUID = project.public_id
        dataset = await plant_dataset(self.db, str(public_id), train=TRAIN, evaluated=HELD_OUT)
        async with self.db.transaction() as session:
            project = await session.get_one(Project, project.id)
            version, _ = await versions.freeze(session, dataset)
            wanted = Wanted(name="Lamps", description=None, provider="local", model=MODEL, method="lora")
            values = {**HYPERPARAMETERS, **changes}
            run, job = await fine_tunings.start_local(
                session, self.broker, project, version, wanted, hyperparameters=values
            )
            self.run_id = run.id
        return job.id

    def start_trainer(self, disk: str) -> None:
        words = ["worker", "-Q", "gpu", "-c", "1", "-n", f"{disk}@faults", *QUIET]
        with (self.folder / f"{disk}.log").open("ab") as log:
            self.processes[disk] = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.faults.worker_app", *words],
                cwd=REPOSITORY,
                env={**os.environ, **self._environment(), "DATA_DIR": str(self.folder / disk)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_machine(self, disk: str) -> None:
        """SIGKILL to everything at once, servers included; the worker's disk is gone for good."""
        self.kill_worker(disk)
        self.kill_postgres()
        self.kill_redis()

    def kill_worker(self, disk: str) -> None:
        """SIGKILL to a worker, whose trainer ends with it; its disk is gone for good."""
        children = [pid for module in ("qlora", "evaluate") for pid in self.children(module)]
        self.kill(disk)
        wait_gone(children)
        shutil.rmtree(self.folder / disk)

    def kill_postgres(self) -> None:
        assert self.servers.postgres.process is not None
        self.servers.postgres.process.send_signal(signal.SIGKILL)
        self.servers.postgres.collect()

    def start_postgres(self) -> None:
        self.servers.postgres.launch()
        wait_ready([self.servers.postgres], 30)

    async def start_reference(self) -> tuple[subprocess.Popen[bytes], Path]:
        """The same training by the trainer alone, never interrupted, on data that was written once more."""
        run = await self.run()
        folder = self.folder / "reference"
        await data_files.write(folder, self.db.transaction, run.dataset_id, run.dataset_version or 0, run.method)
        config = {
            "run_dir": str(folder / "out"),
            "base_model": str(self.folder / "models" / MODEL),
            "base_model_id": MODEL,
            "train_file": str(folder / "train.jsonl"),
            "eval_file": str(folder / "eval.jsonl"),
            "method": run.method,
            "hyperparams": run.hyperparameters,
            "device": "cpu",
            "threads": 1,
        }
        path = folder / "config.json"
        path.write_text(json.dumps(config))
        with (self.folder / "reference.log").open("wb") as log:
            command = [sys.executable, "-m", "backend.trainers.qlora", str(path)]
            started = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=log)
        return started, folder / "out"

    def delivered(self) -> bytes:
        """The weights that the run left in storage."""
        (path,) = [path for path in self.stored("adapter_model.safetensors") if "/checkpoints/" not in path]
        return (self.folder / "storage" / path).read_bytes()

    async def told(self, job_id: int) -> list[dict[str, Any]]:
        """The data of the job's `log` events, in order."""
        redis = kit_redis.connect(self.valkey.url())
        try:
            events = await EventLog(redis).read((await self.job(job_id)).public_id, limit=100_000)
        finally:
            await redis.aclose()
        return [event.data for event in events if event.name == "log"]

    def kill_child(self, module: str) -> int:
        """SIGKILL to the trainer of a worker of this plant; returns its process id."""
        (pid,) = self.children(module)
        os.kill(pid, signal.SIGKILL)
        return pid

    def children(self, module: str) -> list[int]:
        """The process ids of the trainers that run here, whose config lies in this plant's folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if f"backend.trainers.{module}" in words and any(
                word.startswith(str(self.folder)) and "/runs/" in word for word in words
            ):
                found.append(int(path.name))
        return found

    async def run(self) -> FineTuning:
        async with self.db.transaction() as session:
            return await session.get_one(FineTuning, self.run_id)

    async def named(self) -> int:
        """The newest checkpoint that the database names; -1 without any."""
        rows = await self.rows(
            "SELECT max(split_part(filename, '/', 1)::int) FROM artifacts "
            "WHERE fine_tuning_id = :run AND role = 'checkpoint'",
            run=self.run_id,
        )
        return -1 if rows[0][0] is None else int(rows[0][0])

    async def until(self, condition: Callable[[], Awaitable[Any]], seconds: float, what: str) -> Any:
        for _ in patience(seconds):
            if found := await condition():
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{what}: not within {seconds} s\n{self.logs()}")

    async def until_named(self, above: int, seconds: float = 60) -> int:
        """Waits for a stored checkpoint of a later step; returns its step."""

        async def later() -> int:
            step = await self.named()
            return step if step > above else 0

        return int(await self.until(later, seconds, f"no checkpoint after step {above}"))

    async def until_over(self, job_id: int, seconds: float = 120) -> Job:
        async def over() -> Job | None:
            job = await self.job(job_id)
            return job if job.finished_at is not None else None

        found: Job = await self.until(over, seconds, "the job does not end")
        return found

    def stored(self, part: str) -> list[str]:
        """The paths of all files in storage whose path has `part`."""
        storage = self.folder / "storage"
        return [str(path.relative_to(storage)) for path in storage.rglob("*") if path.is_file() and part in str(path)]

    def _environment(self) -> dict[str, str]:
        return {
            **super()._environment(),
            "STORAGE_URL": (self.folder / "storage").as_uri(),
            "MODELS_DIR": str(self.folder / "models"),
            "TRAINING_DEVICE": "cpu",
            "TRAINING_THREADS": "1",
            "CHECKPOINT_SECONDS": str(self.checkpoint_seconds),
            "EVALUATION_EXAMPLES": "4",
            "JOB_LEASE_SECONDS": "4",
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "LOG_LEVEL": "INFO",
        }


def losses(history: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, training loss) of each step that a trainer's history has."""
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


def wait_gone(pids: list[int], seconds: float = 10) -> None:
    """Until none of these processes runs any more."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)
