"""Ten thousand jobs while workers are killed every two seconds and Redis five times, with and without its file."""

import asyncio
import logging
import os
import tempfile
from pathlib import Path

from benchmarks.measure import Row

# Half of them with an append-only file, half without. FAULT_JOBS makes a shorter run of it.
JOBS = int(os.environ.get("FAULT_JOBS", "10000"))
REDIS_KILLS = 5
RESCUE_SECONDS, ENQUEUE_SECONDS = 60.0, 3.0


def run() -> list[Row]:
    """Jobs lost and effects doubled of all jobs (limit 1, at most 0), and the longest rescue against a minute."""
    from backend.embedded.servers import temporary_servers
    from backend.kit import migrations
    from tests.faults.storm import storm

    logging.getLogger("backend.kit.broker").setLevel(logging.ERROR)  # that Redis is down is the point
    rows: list[Row] = []
    with temporary_servers() as servers, tempfile.TemporaryDirectory() as folder:
        for name, aof in (("with AOF", True), ("without AOF", False)):
            database = "faults_aof" if aof else "faults_no_aof"
            servers.postgres.create_database(database)
            url = servers.postgres.url(database)
            migrations.upgrade(url)
            plant = Path(folder, database)
            outcome = asyncio.run(storm(url, plant, jobs=JOBS // 2, redis_kills=REDIS_KILLS, aof=aof))
            print(f"{name}: {outcome}")
            rescue = outcome.longest_rescue_seconds
            rows += [
                Row(f"jobs lost or failed, {name}", len(outcome.lost) + len(outcome.failed), 1, "jobs", 0, "most"),
                Row(f"jobs with two effects, {name}", len(outcome.doubled), 1, "jobs", 0, "most"),
                Row(f"longest rescue, {name}", rescue, RESCUE_SECONDS, "s", 1, "most"),
                Row(f"slowest enqueue, {name}", outcome.slowest_enqueue_seconds, ENQUEUE_SECONDS, "s", 1, "most"),
            ]
    return rows
