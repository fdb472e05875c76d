"""A thousand random histories of 200 operations each, every one checked against an auditor's model of the account."""

import asyncio
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from benchmarks.measure import Row

# Of the histories of one seed, the first is always the simplest one; it is not counted.
SEEDS, HISTORIES, OPERATIONS, PROCESSES = 100, 10, 200, 2


def run() -> list[Row]:
    from backend.embedded.servers import temporary_servers
    from backend.kit import migrations

    with temporary_servers() as servers:
        migrations.upgrade(servers.database_url)
        started = time.perf_counter()
        histories = operations = 0
        # Processes that are started anew: each has its own event loop and connections.
        with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
            running = [pool.submit(_histories_of, servers.database_url, seed) for seed in range(1, SEEDS + 1)]
            for number, future in enumerate(as_completed(running), 1):
                made, done = future.result()
                histories, operations = histories + made - 1, operations + done
                if number % 10 == 0:
                    seconds = time.perf_counter() - started
                    print(f"{histories:,} histories, {operations:,} operations, {seconds:.0f} s", file=sys.stderr)
        seconds = time.perf_counter() - started
        differences = asyncio.run(_differences(servers.database_url))
    return [
        Row(
            f"histories of {OPERATIONS} operations without a difference", histories, SEEDS * HISTORIES, "", 1.0, "least"
        ),
        Row("operations, each checked", operations, SEEDS * HISTORIES * OPERATIONS, "", 1.0, "least"),
        Row("differences that the hourly check finds afterwards", differences, 1.0, "", 0.0, "most"),
        Row("duration", seconds, 3600.0, "s", 1.0, "most"),
    ]


def _histories_of(url: str, seed: int) -> tuple[int, int]:
    """How many histories and operations one seed made; raises where the model and the books differ."""
    from tests.billing import ledger_machine

    return ledger_machine.run(url, first_seed=seed, seeds=1, histories=HISTORIES + 1, steps=OPERATIONS)


async def _differences(url: str) -> int:
    import backend.models  # noqa: F401
    from backend.billing import auditing
    from backend.kit.db import Database

    db = Database(url, pool_size=1)
    try:
        return len((await auditing.verify(db)).differences)
    finally:
        await db.close()
