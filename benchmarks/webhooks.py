"""Stripe's webhook: how fast events are acknowledged at 50 a second, while a worker handles them."""

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row

RATE, SECONDS, LIMIT_MS = 50, 20, 50.0
# Nobody waits for this, but a buyer looks at the balance.
HANDLED_LIMIT_MS = 1000.0


def run() -> list[Row]:
    from backend.embedded.servers import temporary_servers
    from backend.kit import migrations

    with temporary_servers() as servers, tempfile.TemporaryDirectory() as folder:
        servers.postgres.create_database("webhooks")
        url = servers.postgres.url("webhooks")
        migrations.upgrade(url)
        acknowledged, handled = asyncio.run(_measure(url, Path(folder, "plant")))
    return [
        Row(f"event acknowledged at {RATE} a second, p95", _p95(acknowledged), LIMIT_MS, "ms", 1.0, "most"),
        Row(f"event handled at {RATE} a second, p95", _p95(handled), HANDLED_LIMIT_MS, "ms", 1.0, "most"),
    ]


async def _measure(url: str, folder: Path) -> tuple[list[float], list[float]]:
    """Milliseconds from sending to the answer, and from keeping an event to its end, for each delivery."""
    import httpx

    from tests.billing.stripe_events import URL, signed
    from tests.faults.webhook_storm import APIS, WORKER, PaidPlant, WebhookStorm

    async with PaidPlant(url, folder) as plant:
        storm = WebhookStorm(plant, deliveries=RATE * (SECONDS + 2) * 3 // 2, kills=0)
        await storm.prepare()
        for name in (APIS[0], WORKER, "control", "beat"):
            plant.start(name)
        port = plant.ports[APIS[0]]
        await storm.wait_for(port)
        bodies = [json.dumps(event).encode() for event in storm.events[: RATE * (SECONDS + 2)]]
        waits: list[float] = []
        async with httpx.AsyncClient(timeout=10) as client:

            async def send(body: bytes) -> None:
                headers = signed(body)
                before = time.perf_counter()
                answer = await client.post(f"http://127.0.0.1:{port}{URL}", content=body, headers=headers)
                waits.append((time.perf_counter() - before) * 1000)
                answer.raise_for_status()

            started = time.perf_counter()
            sending = []
            for number, body in enumerate(bodies):
                await asyncio.sleep(max(started + number / RATE - time.perf_counter(), 0))
                sending.append(asyncio.create_task(send(body)))
            await asyncio.gather(*sending)
        await storm.settle()
        rows = await plant.rows(
            "SELECT extract(epoch FROM handled_at - created_at) * 1000 FROM stripe_events "
            "WHERE state = 'done' ORDER BY id"
        )
    # The first two seconds warm up caches and connections, and are not counted.
    return waits[RATE * 2 :], [float(row[0]) for row in rows][RATE * 2 :]


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]
