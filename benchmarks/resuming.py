"""One training while its trainer, workers with their disks, Redis, PostgreSQL and the whole machine are killed."""

import asyncio
import os
import tempfile
from pathlib import Path

from benchmarks.measure import Row

# Each round has one kill of every kind.
ROUNDS = int(os.environ.get("RESUME_ROUNDS", "2"))
CHECKPOINT_SECONDS = 1.0
# Beside the interval: a step under way, and the upload of what comes to be lost with its disk.
STORING_SECONDS = 1.0


def run() -> list[Row]:
    """What the kills cost in seconds of training against the interval, and whether the result is the very same."""
    from backend.embedded.servers import temporary_servers
    from backend.kit import migrations
    from tests.faults.training_plant import TrainingPlant
    from tests.faults.training_storm import DISK, MACHINE, POSTGRES, STOP, TRAINER, Outcome, TrainingStorm

    async def storm(database_url: str, folder: Path) -> Outcome:
        async with TrainingPlant(servers, folder, checkpoint_seconds=CHECKPOINT_SECONDS) as plant:
            return await TrainingStorm(plant, rounds=ROUNDS).run(num_epochs=120 * ROUNDS)

    with temporary_servers() as servers, tempfile.TemporaryDirectory() as folder:
        migrations.upgrade(servers.database_url)
        outcome = asyncio.run(storm(servers.database_url, Path(folder, "plant")))
    print(outcome)
    limit = CHECKPOINT_SECONDS + STORING_SECONDS
    return [
        Row("kills that the run outlived", len(outcome.losses) + ROUNDS, 6 * ROUNDS, "kills", 1, "least"),
        Row("training lost with the trainer or the database", outcome.worst(TRAINER, POSTGRES), limit, "s", 1, "most"),
        Row("training lost with a worker and its disk", outcome.worst(DISK, MACHINE), limit, "s", 1, "most"),
        Row("training lost when a worker is told to stop", outcome.worst(STOP), 1, "s", 0, "most"),
        Row("weights unlike those of a run without kills", int(not outcome.same_weights), 1, "runs", 0, "most"),
        Row("losses unlike those of a run without kills", int(not outcome.same_losses), 1, "runs", 0, "most"),
        Row("files of checkpoints left", outcome.left_in_storage, 1, "files", 0, "most"),
    ]
