"""One chunk's work from its text to its drafts: the unit that generation runs, bounds and checkpoints."""

import asyncio
from dataclasses import dataclass

from backend.datasets.strategies.base import Ask, ChunkText, ExampleDraft, GenerationStrategy, InvalidReason
from backend.providers.llm.base import ChatModel, LLMInvalidOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOutcome:
    """What one chunk gave, and the tokens it cost."""

    drafts: tuple[ExampleDraft, ...]
    prompt_tokens: int
    completion_tokens: int


async def generate_for_chunk(
    model: ChatModel, strategy: GenerationStrategy, chunk: ChunkText, wanted: int
) -> ChunkOutcome:
    """At most `wanted` valid drafts of a chunk, followed by the invalid ones with their reasons.

    The requests run at once; the model bounds how many really do. An answer that never met its schema becomes an
    invalid draft; any other LLMError, and TaskNotSupportedByModel, is raised and the chunk counts as not done.
    """
    plan = strategy.plan(chunk, wanted)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_ask(model, strategy, chunk, ask)) for ask in plan.asks]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the others are its like, or were cancelled for it
    answers = [task.result() for task in tasks]
    drafts = [*plan.ready, *(draft for answer in answers for draft in answer.drafts)]
    return ChunkOutcome(
        drafts=tuple(strategy.select(drafts, wanted)),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
    )


async def _ask(model: ChatModel, strategy: GenerationStrategy, chunk: ChunkText, ask: Ask) -> ChunkOutcome:
    try:
        completion = await model.complete(ask.request)
    except LLMInvalidOutput as error:
        failed = ExampleDraft(
            instruction="",
            output=error.text[:2000],
            is_valid=False,
            invalid_reason=InvalidReason.JSON_INVALID,
            meta={"strategy": strategy.name, "shape": ask.shape, "worded_by": model.model},
        )
        return ChunkOutcome(
            drafts=(failed,), prompt_tokens=error.prompt_tokens, completion_tokens=error.completion_tokens
        )
    return ChunkOutcome(
        drafts=tuple(strategy.read(chunk, ask, completion)),
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
    )
