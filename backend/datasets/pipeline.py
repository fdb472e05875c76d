"""Asking and keeping side by side: answers that cost money are kept in batches while the next ones are asked for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


async def ask_and_keep(
    items: AsyncIterator[Item],
    ask: Callable[[Item], Awaitable[Answer]],
    keep: Callable[[list[Answer]], Awaitable[None]],
    *,
    concurrency: int,
    ahead: int = 0,
) -> None:
    """Calls `ask` for every item, `concurrency` at a time, and `keep` with the answers in batches as they come.

    Another `ahead` calls are begun: where `ask` itself waits for one of `concurrency` places, they are ready when one
    becomes free, and no place is idle while an answer is looked at.
    No slot waits for a commit, and what is answered during one commit shares the next; the short queue bounds how many
    answers a crash can lose. Whatever ends the asking, a failure or a cancel, what was answered is kept before it is
    raised. The first failure ends the asking.
    """
    answers: asyncio.Queue[Answer | None] = asyncio.Queue(concurrency)
    turn = asyncio.Lock()

    async def draw() -> None:
        # All draw from one iterator, so a slow item never holds up the others.
        while True:
            async with turn:
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            await answers.put(await ask(item))

    async def draw_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency + ahead):
                    group.create_task(draw())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def keep_all() -> None:
        is_open = True
        while is_open:
            batch = [await answers.get()]
            while not answers.empty():
                batch.append(answers.get_nowait())
            is_open = None not in batch
            if answered := [answer for answer in batch if answer is not None]:
                await keep(answered)

    asking, keeping = asyncio.create_task(draw_all()), asyncio.create_task(keep_all())
    try:
        await asyncio.wait({asking, keeping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not asking.done():
            asking.cancel()
        await asyncio.wait({asking})
        closing = asyncio.create_task(answers.put(None))
        await asyncio.wait({closing, keeping}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({keeping})
        closing.cancel()
    keeping.result()
    asking.result()
