"""The ledger: written once, and never changed."""

import asyncio
import secrets
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from backend.billing import ledger
from backend.billing.errors import InsufficientCharacters
from backend.billing.models import Hold
from backend.kit.db import Database


async def _record(db: Database, user: int, characters: int, reference: str) -> bool:
    async with db.transaction() as session:
        return await ledger.record_usage(
            session, user_id=user, characters=characters, reference=reference, params={"name": "Dataset"}
        )


async def test_one_reference_is_counted_once(db: Database) -> None:
    user, reference = secrets.randbits(40), f"job:{secrets.token_hex(8)}"
    written = await asyncio.gather(*[_record(db, user, 700, reference) for _ in range(8)])
    assert sorted(written) == [False] * 7 + [True]
    async with db.transaction() as session:
        balance = await ledger.balance(session, user)
    assert (balance.used, balance.complimentary, balance.posted) == (700, 700, 0)


async def test_the_free_quota_never_goes_below_zero(db: Database) -> None:
    user = secrets.randbits(40)
    async with db.transaction() as session:
        assert (await ledger.balance(session, user)).free_remaining(1000) == 1000
        await ledger.post(session, user_id=user, kind="grant", characters=900, reference=f"{user}", params={})
        await ledger.post(session, user_id=user, kind="purchase", characters=500, reference=f"{user}", params={})
        held = await ledger.hold(session, user_id=user, characters=1200, reference=f"{user}", purpose="generation")
        assert await ledger.settle(session, held.id, 400)
        assert (await ledger.balance(session, user)).free_remaining(1000) == 500
        held = await ledger.hold(session, user_id=user, characters=1000, reference=f"{user} b", purpose="generation")
        assert await ledger.settle(session, held.id, 1000)
        assert (await ledger.balance(session, user)).free_remaining(1000) == 0


@pytest.mark.parametrize("statement", ["UPDATE ledger_entries SET characters = 1", "DELETE FROM ledger_entries"])
async def test_entries_are_never_changed(db: Database, statement: str) -> None:
    with pytest.raises(DBAPIError, match="never changed"):
        async with db.transaction() as session:
            await session.execute(text(statement))


async def test_two_thousand_holds_at_once_never_overdraw(db: Database) -> None:
    """Some that fit, some that do not, some twice, some settled and released meanwhile."""
    user, there = secrets.randbits(40), 50_000
    async with db.transaction() as session:
        await ledger.post(session, user_id=user, kind="purchase", characters=there, reference=f"{user}", params={})
    least: list[int] = []
    # As many at once as there are connections: more would only wait for one.
    connections = asyncio.Semaphore(25)

    async def take(number: int) -> int:
        async with connections:
            return await take_now(number)

    async def take_now(number: int) -> int:
        # Every tenth is a repetition of the one before it.
        reference = f"{user}:{number - (number % 10 == 9)}"
        try:
            async with db.transaction() as session:
                held = await ledger.hold(
                    session, user_id=user, characters=40 + number % 7, reference=reference, purpose="generation"
                )
        except InsufficientCharacters:
            return 0
        async with db.transaction() as session:
            least.append((await ledger.balance(session, user)).available)
        if number % 3 == 0:
            async with db.transaction() as session:
                await ledger.settle(session, held.id, 30)
        elif number % 3 == 1:
            async with db.transaction() as session:
                await ledger.release(session, held.id)
        return 1

    taken = sum(await asyncio.gather(*[take(number) for number in range(2_000)]))
    assert min(least) >= 0
    async with db.transaction() as session:
        found = await ledger.balance(session, user)
        live = int(
            await session.scalar(
                select(func.sum(Hold.characters)).where(Hold.user_id == user, Hold.state == ledger.HELD)
            )
            or 0
        )
        settled = int(await session.scalar(select(func.sum(Hold.settled)).where(Hold.user_id == user)) or 0)
    assert taken > 1_000
    assert found.held == live
    assert found.posted == there - settled
    assert found.used == settled
    assert 0 <= found.held <= found.posted


async def test_one_hold_ends_once(db: Database) -> None:
    user = secrets.randbits(40)
    async with db.transaction() as session:
        await ledger.post(session, user_id=user, kind="purchase", characters=900, reference=f"{user}", params={})
        held = await ledger.hold(session, user_id=user, characters=900, reference=f"{user}", purpose="generation")

    async def end(number: int) -> bool:
        async with db.transaction() as session:
            if number % 2:
                return await ledger.release(session, held.id)
            return await ledger.settle(session, held.id, 700)

    assert sum(await asyncio.gather(*[end(number) for number in range(20)])) == 1
    async with db.transaction() as session:
        found = await ledger.balance(session, user)
    assert (found.held, found.posted + found.used) == (0, 900)
    assert found.used in (0, 700)


async def test_a_hold_grows_only_by_what_is_there(db: Database) -> None:
    user = secrets.randbits(40)
    async with db.transaction() as session:
        await ledger.post(session, user_id=user, kind="purchase", characters=900, reference=f"{user}", params={})
        held = await ledger.hold(session, user_id=user, characters=500, reference=f"{user}", purpose="generation")
    for wanted, now in ((400, 500), (800, 800), (800, 800), (900, 900)):
        async with db.transaction() as session:
            assert (await ledger.extend(session, held.id, wanted)).characters == now
    with pytest.raises(InsufficientCharacters) as short:
        async with db.transaction() as session:
            await ledger.extend(session, held.id, 901)
    assert short.value.context == {"needed": 901, "available": 900}
    async with db.transaction() as session:
        assert (await ledger.balance(session, user)).held == 900
        assert await ledger.settle(session, held.id, 900)
        # One that has ended stays as it ended.
        assert (await ledger.extend(session, held.id, 2_000)).characters == 900


async def test_what_goes_back_after_it_was_used_is_owed_and_paid_by_the_next_purchase(db: Database) -> None:
    user = secrets.randbits(40)
    params = {"payment_id": 1}

    async def book(what: Any, kind: str, characters: int, reference: str) -> bool:
        async with db.transaction() as session:
            return bool(
                await what(session, user_id=user, kind=kind, characters=characters, reference=reference, params=params)
            )

    assert await book(ledger.credit, "purchase", 1_000, f"{user}:a")
    async with db.transaction() as session:
        held = await ledger.hold(session, user_id=user, characters=700, reference=f"{user}", purpose="generation")
        await ledger.settle(session, held.id, 700)
    for _ in range(2):
        await book(ledger.take_back, "refund", 1_000, f"{user}:a")
    async with db.transaction() as session:
        found = await ledger.balance(session, user)
    assert (found.available, found.owed, found.purchased) == (0, 700, 0)
    for _ in range(2):
        await book(ledger.credit, "purchase", 500, f"{user}:b")
        await book(ledger.credit, "purchase", 600, f"{user}:c")
    async with db.transaction() as session:
        found = await ledger.balance(session, user)
    assert (found.available, found.owed, found.purchased) == (400, 0, 1_100)
