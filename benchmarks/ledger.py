"""The ledger: posts a second through the service, on one account and over fifty, and balances over a long history."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import text

from backend.billing import auditing, ledger
from backend.kit.db import Database
from benchmarks.measure import Row, median

POSTS, WRITERS, ACCOUNTS = 6_000, 8, 50
LEAST_A_SECOND = 1_000.0
SHORT, LONG = 1_000, 1_000_000
READS, ROUNDS = 300, 7
_FILL = text("""
    INSERT INTO ledger_entries (public_id, user_id, kind, reference, characters, balance_after, params)
    SELECT gen_random_uuid(), CAST(:user AS bigint), 'purchase', 'fill:' || CAST(:user AS bigint) || ':' || n,
        7, 7 * n, '{}'
    FROM generate_series(1, CAST(:count AS bigint)) AS n
""")
_ACCOUNT = text("""
    INSERT INTO accounts (public_id, user_id, posted, purchased)
    VALUES (gen_random_uuid(), CAST(:user AS bigint), 7 * CAST(:count AS bigint), 7 * CAST(:count AS bigint))
""")


def run() -> list[Row]:
    from backend.embedded.servers import temporary_servers
    from backend.kit import migrations

    with temporary_servers() as servers:
        migrations.upgrade(servers.database_url)
        return asyncio.run(_measure(servers.database_url))


async def _measure(url: str) -> list[Row]:
    import backend.models  # noqa: F401

    db = Database(url, pool_size=WRITERS)
    try:
        one = await _posts_a_second(db, [secrets.randbits(40)])
        fifty = await _posts_a_second(db, [secrets.randbits(40) for _ in range(ACCOUNTS)])
        short, long = await _filled(db, SHORT), await _filled(db, LONG)
        reads = await _read_seconds(db, short, long)
        started = time.perf_counter()
        audit = await auditing.verify(db)
        audited = time.perf_counter() - started
        assert not audit.differences, audit.differences[:5]
    finally:
        await db.close()
    return [
        Row("posts a second, one account", one, LEAST_A_SECOND, "/s", 1.0, "least"),
        Row(f"posts a second, {ACCOUNTS} accounts", fifty, LEAST_A_SECOND, "/s", 1.0, "least"),
        Row(f"balance read at {LONG:,} entries, against {SHORT:,}", reads[1], reads[0], "ms", 2.0, "most"),
        Row(f"all of {audit.entries:,} entries recomputed", audited, 60.0, "s", 1.0, "most"),
    ]


async def _posts_a_second(db: Database, users: list[int]) -> float:
    async def post(number: int) -> None:
        async with db.transaction() as session:
            user = users[number % len(users)]
            reference = f"bench:{user}:{number}"
            assert await ledger.post(
                session, user_id=user, kind=ledger.PURCHASE, characters=5, reference=reference, params={"n": number}
            )

    seconds = await _in_parallel(POSTS, post)
    for user in users:
        async with db.transaction() as session:
            assert (await ledger.balance(session, user)).posted == 5 * POSTS // len(users)
    return POSTS / seconds


async def _in_parallel(count: int, work: Callable[[int], Awaitable[None]]) -> float:
    """Seconds for `count` calls by WRITERS tasks; the first few, which open connections, are not timed."""
    numbers = iter(range(count))
    for number in [next(numbers) for _ in range(50)]:
        await work(number)

    async def writer() -> None:
        for number in numbers:
            await work(number)

    started = time.perf_counter()
    await asyncio.gather(*[writer() for _ in range(WRITERS)])
    return (time.perf_counter() - started) * count / (count - 50)


async def _filled(db: Database, count: int) -> int:
    user = secrets.randbits(40)
    async with db.transaction() as session:
        await session.execute(_FILL, {"user": user, "count": count})
        await session.execute(_ACCOUNT, {"user": user, "count": count})
    async with db.engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.exec_driver_sql("ANALYZE")
    return user


async def _read_seconds(db: Database, *users: int) -> list[float]:
    """Milliseconds for one balance of each user: medians of rounds that take turns, so that a slow moment hits all."""
    rounds: dict[int, list[float]] = {user: [] for user in users}
    for _ in range(ROUNDS):
        for user in users:
            started = time.perf_counter()
            for _ in range(READS):
                async with db.transaction() as session:
                    await ledger.balance(session, user)
            rounds[user].append((time.perf_counter() - started) / READS * 1000)
    return [median(rounds[user]) for user in users]
