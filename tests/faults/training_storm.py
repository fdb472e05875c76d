"""One training under fire: whatever it stands on is killed, one after the other, and what it lost each time."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

from tests.faults.training_plant import TrainingPlant, losses

TRAINER, DISK, REDIS, POSTGRES, STOP, MACHINE = "trainer", "worker and disk", "redis", "postgresql", "stop", "machine"
KINDS = (TRAINER, DISK, REDIS, POSTGRES, STOP, MACHINE)


@dataclass
class Loss:
    """What one kill cost: steps that were trained again, and the seconds that they had taken."""

    kind: str
    steps: int
    seconds: float


@dataclass
class Outcome:
    losses: list[Loss] = field(default_factory=list)
    state: str = ""
    same_weights: bool = False
    same_losses: bool = False
    steps: int = 0
    left_in_storage: int = 0
    seconds: float = 0.0

    def worst(self, *kinds: str) -> float:
        """The most seconds of training that a kill of these kinds cost."""
        return max((loss.seconds for loss in self.losses if loss.kind in kinds), default=0.0)


class TrainingStorm:
    """`rounds` times each kind of kill, each some time after a checkpoint was stored."""

    def __init__(self, plant: TrainingPlant, *, rounds: int, seed: int = 1) -> None:
        self._plant = plant
        self._rounds = rounds
        self._random = random.Random(seed)
        self._disks = 0
        # (seconds of the clock, highest step told so far): when each step was trained.
        self._reached: list[tuple[float, int]] = []

    async def run(self, **hyperparameters: object) -> Outcome:
        plant, outcome, started = self._plant, Outcome(), time.monotonic()
        job = await plant.start_run(**hyperparameters)
        reference, expected = await plant.start_reference()
        watch = asyncio.create_task(self._watch())
        try:
            disk = self._start_worker()
            for kind in KINDS * self._rounds:
                await plant.until_named(await plant.named(), 180)
                await asyncio.sleep(self._random.uniform(0, plant.checkpoint_seconds))
                disk = await self._strike(kind, disk, job, outcome)
            outcome.state = (await plant.until_over(job, 600)).state
            assert await asyncio.to_thread(reference.wait, 600) == 0
        finally:
            watch.cancel()
            reference.kill()
            reference.wait()
        same = json.loads((expected / "metrics.json").read_text())
        run = await plant.run()
        outcome.steps = same["steps"]
        outcome.same_losses = losses(run.metrics["history"]) == losses(same["history"])
        outcome.same_weights = plant.delivered() == (expected / "adapter" / "adapter_model.safetensors").read_bytes()
        outcome.left_in_storage = len(plant.stored("/checkpoints/"))
        outcome.seconds = time.monotonic() - started
        return outcome

    def _start_worker(self) -> str:
        self._disks += 1
        disk = f"disk-{self._disks}"
        self._plant.start_trainer(disk)
        return disk

    async def _strike(self, kind: str, disk: str, job: int, outcome: Outcome) -> str:
        """Kills, restarts what is needed, and waits until the run has gone on; returns the disk that it is on then."""
        plant = self._plant
        before = len(await self._resumed(job))
        trained, struck_at = self._reached[-1][1], time.monotonic()
        print(f"{kind} at step {trained}", flush=True)
        if kind == REDIS:
            plant.kill_redis()
            await asyncio.sleep(1)
            plant.start_redis()
            return disk
        if kind == TRAINER:
            plant.kill_child("qlora")
        elif kind == POSTGRES:
            plant.kill_postgres()
            await asyncio.sleep(1)
            plant.start_postgres()
        elif kind == STOP:
            process = plant.processes[disk]
            process.terminate()
            await asyncio.to_thread(process.wait, 60)
            plant.processes.pop(disk)
            disk = self._start_worker()
        elif kind == MACHINE:
            plant.kill_machine(disk)
            plant.start_postgres()
            plant.start_redis()
            disk = self._start_worker()
        else:
            plant.kill_worker(disk)
            disk = self._start_worker()

        async def again() -> list[int]:
            return (await self._resumed(job))[before:]

        (step,) = await plant.until(again, 240, f"{kind}: the run does not go on")
        reached_at = max((at for at, number in self._reached if number <= step), default=struck_at)
        outcome.losses.append(
            Loss(kind, max(trained - step, 0), max(struck_at - reached_at, 0) if trained > step else 0)
        )
        print(f"  went on from step {step}: {outcome.losses[-1]}", flush=True)
        return disk

    async def _resumed(self, job: int) -> list[int]:
        return [line["resumed_from_step"] for line in await self._plant.told(job) if "resumed_from_step" in line]

    async def _watch(self) -> None:
        while True:
            try:
                step = int((await self._plant.run()).metrics.get("step") or 0)
            except Exception:  # the database is down
                step = 0
            if step:
                self._reached.append((time.monotonic(), step))
            await asyncio.sleep(0.05)
