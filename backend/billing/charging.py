"""From work to characters: reserves them before it starts, by the pricing policy, and settles or releases them.

The account's row is locked last, after the rows of the work (user, project, job), so that no two transactions wait
for each other.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import ledger, pricing, queries
from backend.billing.errors import InsufficientCharacters
from backend.billing.models import Hold, Order
from backend.billing.pricing import Means, Prices, Quote
from backend.kit.config import Settings
from backend.users.models import User
from backend.users.service import LOCAL_EMAIL

GENERATION, LAUNCH, DISPUTE = "generation", "launch", "dispute"


async def means(session: AsyncSession, settings: Settings, user_id: int) -> Means:
    """What a user has for work that would start now. A plain read: what it says may have changed a moment later."""
    found = await ledger.balance(session, user_id)
    return await _means(session, settings, user_id, available=found.available, granted=found.granted, owed=found.owed)


async def quote(session: AsyncSession, settings: Settings, user_id: int, characters: int) -> Quote:
    """What work of so many characters would cost now; nothing for the owner of AUTH_MODE=local."""
    is_billed = not await is_local(session, user_id)
    found = await means(session, settings, user_id) if is_billed else Means(available=characters)
    return pricing.quote(Prices.of(settings), found, characters)


async def claim_free(session: AsyncSession, settings: Settings, user_id: int) -> bool:
    """Grants the free quota; True for the one call that does so, however many there are."""
    if not settings.free_characters:
        return False
    await _lock_user(session, user_id)
    return await _grant(session, settings, user_id)


async def reserve(
    session: AsyncSession,
    settings: Settings,
    *,
    user_id: int,
    characters: int,
    reference: str,
    purpose: str,
    job_id: int | None = None,
    order_id: int | None = None,
    params: dict[str, Any] | None = None,
) -> Hold | None:
    """Holds the characters of work that starts, by the policy of `pricing.quote`; call it after the work's rows.

    Claims the free quota and grants what the policy gives away. The same reference gives the same hold again. None
    where nothing is held: no characters, or the owner of AUTH_MODE=local. Raises InsufficientCharacters.
    """
    if characters <= 0 or await is_local(session, user_id):
        return None
    await _enough(session, settings, user_id=user_id, characters=characters, reference=reference, purpose=purpose)
    return await ledger.hold(
        session,
        user_id=user_id,
        characters=characters,
        reference=reference,
        purpose=purpose,
        job_id=job_id,
        order_id=order_id,
        params={**(params or {}), "price_per_character": f"{settings.price_per_character:f}"},
    )


async def reserve_for_order(session: AsyncSession, settings: Settings, order: Order, quote: Quote) -> Hold | None:
    """Holds the characters of an order's work and notes the hold in the order; a second call finds the same hold.

    What is complimentary is decided anew under the account's lock, so that two orders that were quoted at the same
    time do not share one cap. Raises InsufficientCharacters when the quote is no longer covered.
    """
    found = await reserve(
        session,
        settings,
        user_id=order.user_id,
        characters=quote.characters,
        reference=f"order:{order.public_id}",
        purpose=LAUNCH,
        order_id=order.id,
        params={"order": str(order.public_id)},
    )
    order.hold_id = None if found is None else found.id
    await session.flush()
    return found


async def top_up(session: AsyncSession, settings: Settings, hold_id: int, characters: int) -> Hold:
    """Makes a live hold as large as the work turned out to be; a larger one stays. Raises InsufficientCharacters."""
    found = await session.get_one(Hold, hold_id, populate_existing=True)
    if found.state != ledger.HELD or characters <= found.characters:
        return found
    await _enough(
        session,
        settings,
        user_id=found.user_id,
        characters=characters,
        reference=f"{found.reference}:{characters}",
        purpose=found.purpose,
        held=found.characters,
    )
    return await ledger.extend(session, hold_id, characters)


async def charge(
    session: AsyncSession,
    *,
    user_id: int,
    hold_id: int | None,
    characters: int,
    reference: str,
    params: dict[str, Any],
) -> bool:
    """Books what was processed: against its hold, of which the rest goes back, or without one as used for nothing.

    At most the hold is taken. False when this was done before.
    """
    if hold_id is not None:
        held = await session.get_one(Hold, hold_id)
        return await ledger.settle(session, hold_id, min(characters, held.characters), params)
    if not characters:
        return False
    return await ledger.record_usage(
        session, user_id=user_id, characters=characters, reference=reference, params=params
    )


async def require_some(session: AsyncSession, settings: Settings, user_id: int) -> None:
    """Before work whose size shows only when it is done. Raises InsufficientCharacters where nothing is left."""
    found = await means(session, settings, user_id)
    if found.available + found.free_unclaimed <= 0 and not await is_local(session, user_id):
        missing = await quote(session, settings, user_id, 1)
        raise InsufficientCharacters(needed=1, available=0, quote=missing.as_dict())


async def take(
    session: AsyncSession, settings: Settings, *, user_id: int, characters: int, reference: str, params: dict[str, Any]
) -> int:
    """Books work that is done, as far as the balance goes; the rest is written down as used for nothing.

    Returns how many characters were taken; 0 when this was done before, and for the owner of AUTH_MODE=local.
    """
    taken = 0
    if not await is_local(session, user_id):
        await claim_free(session, settings, user_id)
        account = await ledger.lock(session, user_id)
        taken = min(account.available, characters)
    if taken and not await ledger.post(
        session, user_id=user_id, kind=ledger.USAGE, characters=-taken, reference=reference, params=params
    ):
        return 0
    if rest := characters - taken:
        name = f"{reference}:rest" if taken else reference
        await ledger.record_usage(session, user_id=user_id, characters=rest, reference=name, params=params)
    return taken


async def release_of_job(session: AsyncSession, hold_id: int | None) -> bool:
    """Gives back what a job held that ends without its work done, unless an order owns the hold and decides itself."""
    if hold_id is None:
        return False
    found = await session.get(Hold, hold_id)
    return found is not None and found.order_id is None and await ledger.release(session, hold_id)


async def release_of_jobs(session: AsyncSession, job_ids: Sequence[int]) -> int:
    """Gives back what these jobs hold; for jobs whose rows are deleted. Call it after that. Returns how many holds."""
    released = 0
    for hold_id in await queries.live_holds_of_jobs(session, job_ids):
        released += await ledger.release(session, hold_id)
    return released


async def release_of_user(session: AsyncSession, user_id: int) -> int:
    """Gives back everything that a user's work holds; for an account that is deleted. Returns how many holds."""
    released = 0
    for hold_id in await queries.live_holds_of_user(session, user_id):
        released += await ledger.release(session, hold_id)
    return released


async def is_local(session: AsyncSession, user_id: int) -> bool:
    """Whether it is the owner of AUTH_MODE=local, who is not billed."""
    return await session.scalar(select(User.email).where(User.id == user_id)) == LOCAL_EMAIL


async def _enough(
    session: AsyncSession,
    settings: Settings,
    *,
    user_id: int,
    characters: int,
    reference: str,
    purpose: str,
    held: int = 0,
) -> None:
    """Sees to it, under the account's lock, that `characters` minus `held` are available; raises where they are not."""
    found = await ledger.balance(session, user_id)
    if settings.free_characters and not found.granted:
        await _lock_user(session, user_id)
    account = await ledger.lock(session, user_id)
    if await queries.hold_exists(session, reference):
        return
    current = await _means(
        session, settings, user_id, available=account.available, granted=account.granted, owed=account.owed
    )
    # What the work holds already is its own.
    current = replace(current, available=current.available + held)
    needed = pricing.quote(Prices.of(settings), current, characters)
    if not needed.is_free:
        raise InsufficientCharacters(
            needed=characters, available=current.available + current.free_unclaimed, quote=needed.as_dict()
        )
    if needed.from_free:
        await _grant(session, settings, user_id)
    if needed.complimentary:
        await ledger.post(
            session,
            user_id=user_id,
            kind=ledger.COMPLIMENTARY,
            characters=needed.complimentary,
            reference=reference,
            params={"purpose": purpose},
        )


async def _means(
    session: AsyncSession, settings: Settings, user_id: int, *, available: int, granted: int, owed: int
) -> Means:
    return Means(
        available=available,
        free_unclaimed=0 if granted else settings.free_characters,
        complimentary_left=max(
            settings.complimentary_characters_per_month - await queries.given_this_month(session, user_id), 0
        ),
        owed=owed,
    )


async def _grant(session: AsyncSession, settings: Settings, user_id: int) -> bool:
    granted = await ledger.post(
        session,
        user_id=user_id,
        kind=ledger.GRANT,
        characters=settings.free_characters,
        reference=f"free:{user_id}",
        params={},
    )
    if granted:
        await session.execute(update(User).where(User.id == user_id).values(has_received_free_credits=True))
    return granted


async def _lock_user(session: AsyncSession, user_id: int) -> None:
    """Before the account's row, because the grant is noted in the user's."""
    await session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
