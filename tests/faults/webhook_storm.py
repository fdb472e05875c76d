"""Stripe's deliveries under fire: duplicated and reordered, while the API and the worker are killed all the time."""

import asyncio
import contextlib
import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from backend.billing import auditing, orders, payments
from backend.billing.models import Account, LedgerEntry, Order, Payment
from backend.billing.pricing import Prices, quote_purchase
from backend.kit.config import Settings
from backend.users.models import User
from benchmarks.measure import free_port
from tests.billing.stripe_events import SECRET, URL, completed, dispute, expired, refunded, signed
from tests.faults.plant import REPOSITORY, Plant

APIS = ("api one", "api two")
WORKER = "worker"
USERS = 50
SENDERS = 24
KILL_SECONDS = 2.5
SETTLE_SECONDS = 600.0


@dataclass
class Outcome:
    """What came of the deliveries. `lost` and `doubled` name payments; `unlike` accounts whose sums are not the due."""

    deliveries: int
    events: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    unhandled: list[str] = field(default_factory=list)
    differences: int = 0
    kills: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"deliveries={self.deliveries} events={self.events} kills={self.kills} lost={len(self.lost)} "
            f"doubled={len(self.doubled)} accounts_off={len(self.unlike)} unhandled={len(self.unhandled)} "
            f"audit_differences={self.differences} sent_again={dict(self.refused)} wall={self.seconds:.0f}s"
        )


class PaidPlant(Plant):
    """With two processes of the API that take Stripe's events."""

    def __init__(self, database_url: str, folder: Path) -> None:
        super().__init__(database_url, folder, aof=True)
        self.ports = {name: free_port() for name in APIS}

    async def __aenter__(self) -> "PaidPlant":
        await super().__aenter__()
        return self

    def start(self, name: str) -> None:
        if name not in APIS:
            super().start(name)
            return
        words = ["--host", "127.0.0.1", "--port", str(self.ports[name]), "--log-level", "warning", "--no-access-log"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "backend.main:app", *words],
                cwd=REPOSITORY,
                env=self._whole_environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        return {
            **super()._environment(),
            "STRIPE_WEBHOOK_SECRETS": json.dumps([SECRET]),
            "AUTH_MODE": "token",
            "LOG_LEVEL": "WARNING",
        }

    def _whole_environment(self) -> dict[str, str]:
        return {**os.environ, **self._environment()}


class WebhookStorm:
    """One run of many deliveries while things are killed."""

    def __init__(self, plant: PaidPlant, *, deliveries: int, kills: int, seed: int = 1) -> None:
        self.plant = plant
        self.outcome = Outcome(deliveries)
        self._kills = kills
        self._random = random.Random(seed)
        self._due: dict[int, tuple[int, int]] = {}
        self._sent = 0
        self._orders: list[Order] = []
        self.events: list[dict[str, Any]] = []

    async def run(self) -> Outcome:
        await self.prepare()
        started = time.monotonic()
        for name in (*APIS, WORKER, "control", "beat"):
            self.plant.start(name)
        for port in self.plant.ports.values():
            await self.wait_for(port)
        killer = asyncio.create_task(self._kill())
        try:
            await self._deliver()
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
        await self.settle()
        self.outcome.seconds = time.monotonic() - started
        await self._judge()
        return self.outcome

    async def prepare(self) -> None:
        """Half as many orders as deliveries, for fifty users, with what is to happen to each, and the books due."""
        prices = Prices.of(Settings(_env_file=None))  # type: ignore[call-arg]
        async with self.plant.db.transaction() as session:
            users = [
                User(email=f"{secrets.token_hex(8)}@example.com", password_hash="!", name="X") for _ in range(USERS)
            ]
            session.add_all(users)
        now = int(time.time())
        for start in range(0, self.outcome.deliveries // 2, 200):
            async with self.plant.db.transaction() as session:
                for _ in range(start, min(start + 200, self.outcome.deliveries // 2)):
                    order = await orders.create(
                        session,
                        user_id=self._random.choice(users).id,
                        kind=orders.CREDITS,
                        quote=quote_purchase(prices, self._random.randint(2_000, 50_000)),
                        params={},
                        state=orders.PENDING_PAYMENT,
                    )
                    await payments.expect(session, order)
                    self._orders.append(order)
        for order in self._orders:
            self._plan(order, now)

    def _plan(self, order: Order, now: int) -> None:
        dice = self._random.random
        self.events.append(completed(order, at=now))
        if dice() < 0.1:
            self.events.append(completed(order, at=now + 1))
        if dice() < 0.1:
            self.events.append(expired(order, at=now + 2))
        back = frozen = 0
        if dice() < 0.2:
            first = self._random.randint(1, order.amount_cents // 2)
            last = self._random.randint(first, order.amount_cents)
            self.events += [refunded(order, first, at=now + 3), refunded(order, last, at=now + 4)]
            back = -(-order.characters_bought * last // order.amount_cents)
        if dice() < 0.1:
            self.events.append(dispute("charge.dispute.created", order, status="needs_response", at=now + 5))
            frozen = order.characters_bought - back
            if dice() < 0.5:
                self.events.append(dispute("charge.dispute.closed", order, status="lost", at=now + 6))
                back, frozen = order.characters_bought, 0
        posted, held = self._due.get(order.user_id, (0, 0))
        self._due[order.user_id] = posted + order.characters_bought - back, held + frozen

    async def wait_for(self, port: int) -> None:
        async with httpx.AsyncClient(timeout=5) as client:
            for _ in range(300):
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200:
                        return
                await asyncio.sleep(0.1)

    async def _deliver(self) -> None:
        """All events in any order, some of them several times; each until it is acknowledged, as Stripe does."""
        sent = list(self.events)
        self.outcome.events = len(sent)
        while len(sent) < self.outcome.deliveries:
            sent.append(self._random.choice(self.events))
        self._random.shuffle(sent)
        self.outcome.deliveries = len(sent)
        queue = list(enumerate(sent))

        async def send_all(client: httpx.AsyncClient) -> None:
            while queue:
                place, event = queue.pop()
                # Spread over the kills, so that they all hit something.
                while self.outcome.kills < (len(sent) - place) * self._kills // len(sent) - 1:
                    await asyncio.sleep(0.05)
                await self._send(client, event)
                self._sent += 1

        async with httpx.AsyncClient(timeout=10) as client:
            await asyncio.gather(*[send_all(client) for _ in range(SENDERS)])

    async def _send(self, client: httpx.AsyncClient, event: dict[str, Any]) -> None:
        body = json.dumps(event).encode()
        while True:
            port = self._random.choice(list(self.plant.ports.values()))
            try:
                answer = await client.post(f"http://127.0.0.1:{port}{URL}", content=body, headers=signed(body))
                if answer.status_code == 200:
                    return
                self.outcome.refused[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                self.outcome.refused[type(error).__name__] += 1
            await asyncio.sleep(0.1)

    async def _kill(self) -> None:
        """An API, the worker, the other API, the worker, the one that sweeps ...; each is started again at once."""
        turns = (APIS[0], WORKER, APIS[1], WORKER, "control")
        while self.outcome.kills < self._kills:
            await asyncio.sleep(KILL_SECONDS * self._random.uniform(0.7, 1.3))
            # And the kills over the deliveries.
            while self._sent * self._kills < self.outcome.kills * self.outcome.deliveries:
                await asyncio.sleep(0.05)
            name = turns[self.outcome.kills % len(turns)]
            if name in APIS:
                await self.wait_for(self.plant.ports[name])  # one that has not started yet loses nothing
            self.plant.kill(name)
            self.plant.start(name)
            self.outcome.kills += 1

    async def settle(self) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            if not await self.plant.rows("SELECT 1 FROM stripe_events WHERE state = 'pending' LIMIT 1"):
                return
            await asyncio.sleep(0.5)

    async def _judge(self) -> None:
        outcome = self.outcome
        async with self.plant.db.transaction() as session:
            bought = Counter(
                (await session.scalars(select(LedgerEntry.reference).where(LedgerEntry.kind == "purchase"))).all()
            )
            made = (await session.scalars(select(Payment))).all()
            accounts = {row.user_id: row for row in await session.scalars(select(Account))}
        by_order = {row.order_id: row for row in made}
        for order in self._orders:
            payment = by_order[order.id]
            times = bought.pop(f"payment:{payment.public_id}", 0)
            if payment.state != payments.PAID or times == 0:
                outcome.lost.append(str(order.public_id))
        outcome.doubled = [*bought, *([] if len(made) == len(self._orders) else ["payments"])]
        for user_id, due in self._due.items():
            account = accounts.get(user_id)
            found = None if account is None else (account.posted, account.held)
            if found != due:
                outcome.unlike.append(f"user {user_id} has {found}, due {due}")
        kept = await self.plant.rows(
            "SELECT event_id, state, error FROM stripe_events WHERE state NOT IN ('done', 'ignored')"
        )
        outcome.unhandled = [" ".join(map(str, row)) for row in kept]
        (count,) = (await self.plant.rows("SELECT count(*) FROM stripe_events"))[0]
        if count != outcome.events:
            outcome.lost.append(f"{outcome.events - count} events")
        outcome.differences = len((await auditing.verify(self.plant.db)).differences)


async def webhook_storm(database_url: str, folder: Path, *, deliveries: int, kills: int, seed: int = 1) -> Outcome:
    """Delivers events to two APIs and a worker on an empty database, which are killed `kills` times meanwhile."""
    async with PaidPlant(database_url, folder) as plant:
        outcome = await WebhookStorm(plant, deliveries=deliveries, kills=kills, seed=seed).run()
        if outcome.lost or outcome.doubled or outcome.unlike or outcome.unhandled:
            print(plant.logs(), *outcome.unlike[:5], *outcome.unhandled[:5], sep="\n")
        return outcome
