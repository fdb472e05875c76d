"""Answers of local models, for the process that faces the users: asked through Redis, followed piece by piece."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import ROUND_CEILING
from uuid import UUID, uuid4

from redis.asyncio import Redis
from redis.exceptions import RedisError

from backend.billing import charging
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.training.errors import (
    AnswerFailed,
    FineTuningNotFinished,
    FineTuningNotFound,
    NoAnswerInTime,
    NoServingHost,
    PromptRefused,
    PromptTooLong,
    ServingBusy,
    ServingInterrupted,
    TooManyQuestions,
)
from backend.training.questions import Ending, Part, Piece, Question
from backend.training.serving_queue import FIRST, AnswerEvent, ServingQueue

log = logging.getLogger(__name__)

_RENEW_SECONDS = 1.0
# A question that its host lost before the first token is put once more.
_ATTEMPTS = 2

# Says whether the one who asked has gone away meanwhile.
IsGone = Callable[[], Awaitable[bool]]


async def never() -> bool:
    return False


async def answer(
    redis: Redis,
    settings: Settings,
    question: Question,
    *,
    user_id: int,
    fine_tuning_id: int,
    seconds: float,
    is_gone: IsGone = never,
) -> AsyncIterator[Part]:
    """A local model's answer, piece by piece, by whichever serving process takes the question.

    An answer that is not read to its end is cancelled. Raises NoServingHost, TooManyQuestions, ServingBusy,
    NoAnswerInTime, ServingInterrupted, PromptTooLong, PromptRefused, AnswerFailed and those of a model that is gone.
    """
    deadline = time.monotonic() + seconds
    queue = ServingQueue(redis)
    for attempt in range(1, _ATTEMPTS + 1):
        begun = False
        question_id = uuid4()
        left = deadline - time.monotonic()
        await _admit(queue, settings, question_id, user_id, fine_tuning_id, question, seconds=left)
        try:
            async for part in _follow(queue, question_id, user_id, deadline, is_gone):
                begun = True
                yield part
            return
        except ServingInterrupted:
            if begun or attempt == _ATTEMPTS:
                raise
            log.warning("question %s was lost with the process that took it; it is asked again", question_id)
        except _AskerLeft:
            return
        except _OutOfTime as error:
            raise NoAnswerInTime(seconds=seconds) from error
        finally:
            await asyncio.shield(asyncio.ensure_future(_leave(queue, question_id, user_id)))


async def on_answered(
    db: Database,
    settings: Settings,
    *,
    user_id: int,
    fine_tuning_id: int,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    characters: int,
    reference: UUID,
) -> None:
    """Books an answer, once for each `reference`, where answers have a price.

    Balances are in characters of PRICE_PER_CHARACTER, so an answer takes as many of them as are worth its price.
    """
    price = settings.serving_price_per_1k_characters
    if price <= 0 or not characters:
        return
    worth = (price / 1000 * characters / settings.price_per_character).to_integral_value(rounding=ROUND_CEILING)
    params = {
        "fine_tuning_id": fine_tuning_id,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "answered_characters": characters,
        "price_per_1k_characters": str(price),
    }
    async with db.transaction() as session:
        await charging.take(
            session, settings, user_id=user_id, characters=int(worth), reference=f"answer:{reference}", params=params
        )


async def require_means(db: Database, settings: Settings, user_id: int) -> None:
    """Raises InsufficientCharacters where answers have a price and nothing is left to pay it with."""
    if settings.serving_price_per_1k_characters > 0:
        async with db.transaction() as session:
            await charging.require_some(session, settings, user_id)


class _OutOfTime(Exception):
    """The deadline has passed."""


class _AskerLeft(Exception):
    """Nobody waits for the answer any more."""


async def _admit(
    queue: ServingQueue,
    settings: Settings,
    id: UUID,
    user_id: int,
    fine_tuning_id: int,
    question: Question,
    *,
    seconds: float,
) -> None:
    limits = settings.serving_queue_per_user, settings.serving_queue
    try:
        admission = await queue.admit(id, user_id, fine_tuning_id, question, seconds=seconds, limits=limits)
    except (RedisError, OSError) as error:
        log.warning("a question cannot be put: %r", error)
        raise NoServingHost() from error
    if admission == "nobody":
        raise NoServingHost()
    if admission == "user":
        raise TooManyQuestions(limit=settings.serving_queue_per_user)
    if admission == "full":
        raise ServingBusy()


async def _follow(queue: ServingQueue, id: UUID, user_id: int, deadline: float, is_gone: IsGone) -> AsyncIterator[Part]:
    """The parts of an answer as they come. Raises _OutOfTime, _AskerLeft, ServingInterrupted, what the host tells."""
    last, host, renewed_at = FIRST, "", time.monotonic()
    while True:
        now = time.monotonic()
        if now >= deadline:
            raise _OutOfTime
        try:
            if now - renewed_at >= _RENEW_SECONDS:
                renewed_at = now
                if await is_gone():
                    raise _AskerLeft
                if not await queue.renew(id, user_id, host):
                    raise ServingInterrupted()
            events = await queue.read(id, after=last)
        except (RedisError, OSError) as error:
            raise ServingInterrupted() from error
        for event in events:
            last = event.id
            if event.name == "taken":
                host = event.data["host"]
            elif event.name == "token":
                yield Piece(event.data["text"])
            elif event.name == "done":
                yield _ending(event)
                return
            else:
                raise _failure(event)


def _ending(event: AnswerEvent) -> Ending:
    data = event.data
    return Ending(
        finish_reason="length" if data["finish_reason"] == "length" else "stop",
        prompt_tokens=data["prompt_tokens"],
        completion_tokens=data["completion_tokens"],
        first_token_ms=data.get("first_token_ms"),
        tokens_per_second=data.get("tokens_per_second"),
    )


def _failure(event: AnswerEvent) -> Exception:
    """What a host told, as the error that it was there."""
    code, sentence = str(event.data.get("error_code")), str(event.data.get("error") or "")
    context = event.data.get("context") or {}
    if code == ServingInterrupted.code:
        return ServingInterrupted()
    if code == PromptTooLong.code:
        return PromptTooLong(sentence or None)
    if code == PromptRefused.code:
        return PromptRefused(sentence or None)
    if code == FineTuningNotFound.code:
        return FineTuningNotFound()
    if code == FineTuningNotFinished.code:
        return FineTuningNotFinished(state=context.get("state", "completed"))
    if code == AnswerFailed.code:
        return AnswerFailed(reason=context.get("reason", sentence))
    return AnswerFailed(reason=sentence or "it failed.", error_code=code)


async def _leave(queue: ServingQueue, id: UUID, user_id: int) -> None:
    try:
        await queue.leave(id, user_id)
    except (RedisError, OSError) as error:
        log.warning("question %s stays in Redis until it expires: %r", id, error)
