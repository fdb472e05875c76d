"""Ten thousand of Stripe's deliveries, duplicated and reordered, while API and worker are killed thirty times."""

import asyncio
import os
import tempfile
from pathlib import Path

from benchmarks.measure import Row

# WEBHOOK_DELIVERIES makes a shorter run of it.
DELIVERIES = int(os.environ.get("WEBHOOK_DELIVERIES", "10000"))
KILLS = max(DELIVERIES * 32 // 10_000, 4)


def run() -> list[Row]:
    """Payments lost, booked twice, and accounts whose balance is not exact: limit 1, at most 0."""
    from backend.embedded.servers import temporary_servers
    from backend.kit import migrations
    from tests.faults.webhook_storm import webhook_storm

    with temporary_servers() as servers, tempfile.TemporaryDirectory() as folder:
        servers.postgres.create_database("webhooks_faults")
        url = servers.postgres.url("webhooks_faults")
        migrations.upgrade(url)
        outcome = asyncio.run(webhook_storm(url, Path(folder, "plant"), deliveries=DELIVERIES, kills=KILLS))
    print(outcome)
    unbooked = len(outcome.lost) + len(outcome.unhandled)
    return [
        Row(f"payments or events lost of {outcome.deliveries} deliveries", unbooked, 1, "events", 0, "most"),
        Row("payments booked twice", len(outcome.doubled), 1, "payments", 0, "most"),
        Row("accounts that are not exact", len(outcome.unlike) + outcome.differences, 1, "accounts", 0, "most"),
        Row("kill -9 of API or worker", outcome.kills, 30 * DELIVERIES / 10_000, "kills", 1, "least"),
    ]
