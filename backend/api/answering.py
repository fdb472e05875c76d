"""Answers of fine-tuned models over HTTP, for both faces that give them: opened, collected, timed."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from fastapi import Request

from backend.api.services import Services
from backend.kit.errors import DomainError
from backend.training import answers
from backend.training.answers import Means
from backend.training.errors import ServingInterrupted
from backend.training.models import FineTuning
from backend.training.questions import Ending, Part, Piece, Question


@dataclass(slots=True)
class Clock:
    """Times one answer as its asker sees it, from the moment that the request was read."""

    asked_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None

    def note(self, part: Part) -> None:
        if self.first_at is None and isinstance(part, Piece):
            self.first_at = time.monotonic()

    @property
    def first_token_ms(self) -> float | None:
        return None if self.first_at is None else round(1000 * (self.first_at - self.asked_at), 1)

    def tokens_per_second(self, ending: Ending) -> float | None:
        """The model's own figure where it has one, else what was seen here after the first token."""
        if ending.tokens_per_second is not None or self.first_at is None or not ending.completion_tokens:
            return ending.tokens_per_second
        seconds = time.monotonic() - self.first_at
        return round((ending.completion_tokens - 1) / seconds, 2) if seconds > 0 else None


async def opened(
    services: Services,
    request: Request,
    run: FineTuning,
    question: Question,
    *,
    user_id: int,
    seconds: float,
    piecewise: bool,
) -> AsyncGenerator[Part, None]:
    """The parts of an answer, once the first one is there: what fails before it can still be a status of its own."""
    means = Means(services.db, services.settings, services.sealer, services.redis, services.storage)
    parts = answers.answer(
        means,
        run,
        question,
        user_id=user_id,
        seconds=seconds,
        piecewise=piecewise,
        is_gone=request.is_disconnected,
    )
    return await begun(parts)


async def begun(parts: AsyncGenerator[Part, None]) -> AsyncGenerator[Part, None]:
    """The same parts, once the first one is there."""
    try:
        first = await anext(parts)
    except StopAsyncIteration:
        raise ServingInterrupted() from None
    return _from(first, parts)


async def collected(parts: AsyncIterator[Part], clock: Clock) -> tuple[str, Ending]:
    """The whole text and how it ended. Raises ServingInterrupted for an answer without an end."""
    pieces: list[str] = []
    ending: Ending | None = None
    # To the very end, where what the answer held is given back.
    async for part in parts:
        clock.note(part)
        if isinstance(part, Ending):
            ending = part
        else:
            pieces.append(part.text)
    if ending is None:
        raise ServingInterrupted()
    return "".join(pieces), ending


async def told(parts: AsyncIterator[Part]) -> AsyncIterator[Part | DomainError]:
    """The parts, and as the last one the error that ended them: an answer that has begun cannot change its status."""
    has_ended = False
    try:
        async for part in parts:
            has_ended = isinstance(part, Ending)
            yield part
        if not has_ended:
            yield ServingInterrupted()
    except DomainError as error:
        yield error


async def _from(first: Part, rest: AsyncGenerator[Part, None]) -> AsyncGenerator[Part, None]:
    try:
        yield first
        async for part in rest:
            yield part
    finally:
        await rest.aclose()
