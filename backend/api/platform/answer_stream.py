"""A question to a fine-tuned model as the dashboard asks it, and its answer whole or as server-sent events."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, StringConstraints

from backend.api import answering
from backend.api.answering import Clock
from backend.kit.errors import DomainError
from backend.providers.llm.base import ChatMessage
from backend.training.questions import Ending, Part, Piece, Question

ANSWER_HEADERS = {
    "X-First-Token-Ms": {"schema": {"type": "number"}, "description": "Until the first text was there"},
    "X-Tokens-Per-Second": {"schema": {"type": "number"}, "description": "After the first token"},
}


class PromptIn(BaseModel):
    """`stream`: the answer comes as server-sent events, piece by piece.

    `system_prompt`: left out, that of the launch which made the model; "" asks without one.
    """

    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=8000)]
    system_prompt: Annotated[str, StringConstraints(max_length=8000)] | None = None
    max_tokens: int = Field(default=256, ge=1, le=2048)
    temperature: float = Field(default=0.0, ge=0, le=2)
    stream: bool = False

    def question(self, trained_with: str | None) -> Question:
        messages = [ChatMessage("user", self.prompt)]
        if system_prompt := trained_with if self.system_prompt is None else self.system_prompt:
            messages.insert(0, ChatMessage("system", system_prompt))
        return Question(messages=tuple(messages), max_tokens=self.max_tokens, temperature=self.temperature)


class AnswerOut(BaseModel):
    response: str


def answer_stream(parts: AsyncIterator[Part], clock: Clock) -> StreamingResponse:
    """Events `token` {text}, then `complete` {response, finish_reason, usage, latency} or `error`."""
    return StreamingResponse(
        _events(answering.told(parts), clock),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def timing_headers(clock: Clock, ending: Ending) -> dict[str, str]:
    known = {
        "X-First-Token-Ms": clock.first_token_ms,
        "X-Tokens-Per-Second": clock.tokens_per_second(ending),
    }
    return {name: str(value) for name, value in known.items() if value is not None}


async def _events(parts: AsyncIterator[Part | DomainError], clock: Clock) -> AsyncIterator[bytes]:
    text = ""
    async for part in parts:
        if isinstance(part, Piece):
            clock.note(part)
            text += part.text
            yield _event("token", {"text": part.text})
        elif isinstance(part, Ending):
            yield _event("complete", _complete(text, part, clock))
        else:
            failure = {"detail": part.detail, "error_code": part.code, "context": part.context}
            yield _event("error", failure)


def _complete(text: str, ending: Ending, clock: Clock) -> dict[str, Any]:
    return {
        "response": text.strip(),
        "finish_reason": ending.finish_reason,
        "usage": {"prompt_tokens": ending.prompt_tokens, "completion_tokens": ending.completion_tokens},
        "latency": {
            "first_token_ms": clock.first_token_ms,
            # Without the way to the model and back; null where the model lies elsewhere.
            "model_first_token_ms": ending.first_token_ms,
            "tokens_per_second": clock.tokens_per_second(ending),
        },
    }


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))
