"""Chat completions of fine-tuned models, whole or streamed, as OpenAI's clients expect them."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from uuid import uuid4

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from backend.api import answering
from backend.api.answering import Clock
from backend.api.auth import authenticate
from backend.api.openai.deps import KeyDep, get_model, name_of
from backend.api.openai.errors import error_body, openai_responses
from backend.api.services import ServicesDep
from backend.kit.errors import DomainError
from backend.providers.llm.base import ChatMessage, Role
from backend.training import answers
from backend.training.errors import ParameterUnsupported
from backend.training.questions import Ending, Part, Piece, Question

router = APIRouter(tags=["openai"])

DEFAULT_MAX_TOKENS = 1024
MOST_TOKENS = 16_384
_CHARACTERS = 400_000
# Values of parameters that are not supported, but that ask for nothing either.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "stream_options": ({}, {"include_usage": True}, {"include_usage": False}),
}
# Said for the caller's own records; nothing here depends on them.
_NOTES = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

Text = Annotated[str, StringConstraints(max_length=_CHARACTERS)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class MessageIn(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None


class ChatIn(BaseModel):
    """`model` is `ft-<UUID of a fine-tuning>`. Other parameters of OpenAI are refused, unless they ask for nothing."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    messages: Annotated[list[MessageIn], Field(min_length=1, max_length=500)]
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def question(self) -> Question:
        """What is asked. Raises ParameterUnsupported for what would be silently left out."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and name not in _NOTES and value not in _HARMLESS.get(name, ()):
                raise ParameterUnsupported(name[:100])
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Question(
            messages=tuple(ChatMessage(_ROLES[message.role], message.text) for message in self.messages),
            max_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(stop),
            seed=self.seed,
        )


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Estimated for models at a provider."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionOut(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


@router.post(
    "/chat/completions",
    response_model=CompletionOut,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **openai_responses(400, 401, 404, 422, 502, 503),
    },
)
async def create_chat_completion(body: ChatIn, request: Request, key: KeyDep, services: ServicesDep) -> Any:
    """An answer of one of the caller's fine-tuned models, local or at a provider. No transaction is open meanwhile."""
    clock = Clock()
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, key)
        run = await get_model(session, owner, body.model)
        answers.require_finished(run)
    question = body.question()
    seconds = services.settings.serving_timeout_seconds
    parts = await answering.opened(
        services, request, run, question, user_id=owner.id, seconds=seconds, piecewise=bool(body.stream)
    )
    head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": name_of(run)}
    if body.stream:
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return StreamingResponse(
            _chunks(answering.told(parts), head, with_usage=with_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    text, ending = await answering.collected(parts, clock)
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ending.finish_reason}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(ending)}


async def _chunks(
    parts: AsyncIterator[Part | DomainError], head: dict[str, Any], *, with_usage: bool
) -> AsyncIterator[bytes]:
    """The stream: a chunk with the role, one for each piece, one with the reason of the end, the usage if wished."""
    head = {**head, "object": "chat.completion.chunk", "system_fingerprint": None}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

    yield chunk({"role": "assistant", "content": ""})
    async for part in parts:
        if isinstance(part, Piece):
            yield chunk({"content": part.text})
        elif isinstance(part, Ending):
            yield chunk({}, part.finish_reason)
            if with_usage:
                yield _event({**head, "choices": [], "usage": _usage(part)})
        else:
            yield _event(error_body(part.status, part.detail, part.code, part.context))
            return
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _usage(ending: Ending) -> dict[str, int]:
    asked, answered = ending.prompt_tokens or 0, ending.completion_tokens or 0
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
