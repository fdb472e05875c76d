"""The answer of a finished fine-tuning to a conversation, from where it lies: a provider, vLLM, or our own process."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from redis.asyncio import Redis

from backend.contents.token_counting import ApproximateTokenCounter
from backend.kit.config import Settings
from backend.kit.crypto import Sealer
from backend.kit.db import Database
from backend.providers.vllm import AdapterUnknown, VllmServer, VllmUnavailable
from backend.storage import Storage
from backend.training import adapter_files, queries, serving
from backend.training.errors import (
    FineTuningNotFinished,
    NoAnswerInTime,
    NoServingHost,
    ParameterUnsupported,
    VllmTakesAdapters,
)
from backend.training.fine_tunings import LOCAL
from backend.training.methods import WHOLE_MODEL
from backend.training.models import FineTuning
from backend.training.questions import Ending, Part, Piece, Question
from backend.training.remote import provider_of
from backend.training.serving import IsGone
from backend.training.statuses import Status

log = logging.getLogger(__name__)

_AT_PROVIDERS = "for models at a provider"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Means:
    """What an answer may need."""

    db: Database
    settings: Settings
    sealer: Sealer
    redis: Redis
    storage: Storage


def require_finished(fine_tuning: FineTuning) -> None:
    """Raises FineTuningNotFinished."""
    if fine_tuning.status != Status.COMPLETED:
        raise FineTuningNotFinished(state=fine_tuning.status)


async def answer(
    means: Means,
    run: FineTuning,
    question: Question,
    *,
    user_id: int,
    seconds: float,
    piecewise: bool = True,
    is_gone: IsGone = serving.never,
) -> AsyncGenerator[Part, None]:
    """Pieces of text, then one Ending. No transaction is open meanwhile. What is not read to its end is cancelled.

    Unless `piecewise`, a provider is asked for the whole answer at once.

    Raises NoServingHost for a local model that no process serves, TooManyQuestions, ServingBusy, NoAnswerInTime,
    ServingInterrupted, PromptTooLong, PromptRefused, AnswerFailed, VllmUnavailable, VllmRefused, ParameterUnsupported,
    ProviderKeyGone, TuningErrors, InsufficientCharacters.
    """
    require_finished(run)
    if run.provider != LOCAL:
        parts = _by_provider(means, run, question, seconds, piecewise=piecewise)
    else:
        await serving.require_means(means.db, means.settings, user_id)
        parts = _metered(means, run, question, user_id, _by_us(means, run, question, user_id, seconds, is_gone))
    async with aclosing(parts):
        async for part in parts:
            yield part


async def _by_us(
    means: Means, run: FineTuning, question: Question, user_id: int, seconds: float, is_gone: IsGone
) -> AsyncGenerator[Part, None]:
    # vLLM takes adapters over the bases that it serves. A run over all weights left a model of its own.
    with_vllm = bool(means.settings.vllm_base_url) and run.method != WHOLE_MODEL
    if with_vllm:
        server = VllmServer(means.settings.vllm_base_url)
        try:
            if await _is_served(server, run):
                async for part in _within(seconds, _by_vllm(means, server, run, question)):
                    yield part
                return
        finally:
            await server.aclose()
    parts = serving.answer(
        means.redis,
        means.settings,
        question,
        user_id=user_id,
        fine_tuning_id=run.id,
        seconds=seconds,
        is_gone=is_gone,
    )
    try:
        async for part in parts:
            yield part
    except NoServingHost as error:
        if means.settings.vllm_base_url and run.method == WHOLE_MODEL:
            raise VllmTakesAdapters() from error
        raise


async def _is_served(server: VllmServer, run: FineTuning) -> bool:
    """Whether vLLM has the run's base; one that is away leaves the question to our own process."""
    try:
        return run.model in await server.bases()
    except VllmUnavailable as error:
        log.warning("vLLM is passed over: %s", error.detail)
        return False


async def _by_vllm(means: Means, server: VllmServer, run: FineTuning, question: Question) -> AsyncIterator[Part]:
    """Asks first, and registers the adapter when the server does not know it."""
    async with means.db.transaction() as session:
        artifacts = list(await queries.list_artifacts(session, run.id, queries.ADAPTER))
    if not artifacts:
        raise FineTuningNotFinished(state=run.status)
    name = adapter_files.name_of(run, artifacts)
    body = {key: value for key, value in question.as_command().items() if value is not None}
    for is_registered in (False, True):
        try:
            async for part in _parts_of(server.stream(name, body)):
                yield part
            return
        except AdapterUnknown:
            if is_registered:
                raise VllmUnavailable("it does not know the adapter that it was told to load") from None
            folder = await adapter_files.ensure(means.settings, means.storage, run, artifacts, keep=set())
            await server.load_adapter(name, folder)


async def _parts_of(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[Part]:
    reason, usage = "stop", dict[str, Any]()
    async for chunk in chunks:
        for choice in chunk.get("choices") or []:
            if text := (choice.get("delta") or {}).get("content"):
                yield Piece(text)
            reason = choice.get("finish_reason") or reason
        usage = chunk.get("usage") or usage
    yield Ending(
        finish_reason="length" if reason == "length" else "stop",
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )


async def _by_provider(
    means: Means, run: FineTuning, question: Question, seconds: float, *, piecewise: bool
) -> AsyncGenerator[Part, None]:
    """A provider's model, asked there with its owner's key. Its tokens are estimated: answers come without."""
    model = run.provider_state.get("result_model")
    if not model:
        raise FineTuningNotFinished(state=run.status)
    unsupported = {"top_p": question.top_p < 1, "stop": bool(question.stop), "seed": question.seed is not None}
    for parameter, is_given in unsupported.items():
        if is_given:
            raise ParameterUnsupported(parameter, _AT_PROVIDERS)
    text = ""
    async with provider_of(means.db, means.settings, means.sealer, run) as provider:
        options: dict[str, Any] = {"max_tokens": question.max_tokens, "temperature": question.temperature}
        if piecewise:
            pieces = provider.stream(model, question.messages, **options)
        else:
            pieces = _once(provider.answer(model, question.messages, **options))
        async for piece in _within(seconds, pieces):
            text += piece
            yield Piece(piece)
    asked, answered = ApproximateTokenCounter().count_many(
        ["\n".join(message.content for message in question.messages), text]
    )
    yield Ending(finish_reason="stop", prompt_tokens=asked, completion_tokens=answered)


async def _once(answering: Awaitable[str]) -> AsyncIterator[str]:
    yield await answering


async def _within(seconds: float, items: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same items, as long as they come in time. Raises NoAnswerInTime."""
    deadline = time.monotonic() + seconds
    try:
        while True:
            # Around each one: a timeout belongs to a task, and the next item may be wanted by another task.
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                item = await anext(items)
            yield item
    except StopAsyncIteration:
        return
    except TimeoutError as error:
        raise NoAnswerInTime(seconds=seconds) from error


async def _metered(
    means: Means, run: FineTuning, question: Question, user_id: int, parts: AsyncGenerator[Part, None]
) -> AsyncGenerator[Part, None]:
    """The same parts; what was answered is written down at the end, and when the asker leaves before."""
    reference, characters = uuid4(), 0
    ending: Ending | None = None
    try:
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, Piece):
                    characters += len(part.text)
                else:
                    ending = part
                yield part
    finally:
        if characters or ending is not None:
            writing = serving.on_answered(
                means.db,
                means.settings,
                user_id=user_id,
                fine_tuning_id=run.id,
                prompt_tokens=ending.prompt_tokens if ending is not None else None,
                completion_tokens=ending.completion_tokens if ending is not None else None,
                characters=characters + question.characters,
                reference=reference,
            )
            await asyncio.shield(asyncio.ensure_future(writing))
