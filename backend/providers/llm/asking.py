"""What every client of a language model shares: bounds, retries, the check of the answer, and typed errors."""

import asyncio
import json
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Set
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, Self, TypedDict, Unpack

from backend.providers.answers import quoted
from backend.providers.llm.advice import Advice
from backend.providers.llm.base import (
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    LLMError,
    LLMInvalidOutput,
    LLMModelNotFound,
    LLMRateLimited,
    LLMRefused,
    LLMUnavailable,
)
from backend.providers.llm.json_answer import find_object, schema_violation

RETRIED_STATUSES: Final = {408, 409, 425, 429}
FIRST_BACKOFF_SECONDS: Final = 0.5
LONGEST_BACKOFF_SECONDS: Final = 20.0
# Words with which servers say that they cannot constrain the output, as opposed to any other 400.
_NO_STRUCTURED_OUTPUT = re.compile(
    r"response_format|output_config|output_format|schema|grammar|structured|guided", re.IGNORECASE
)
_WHOLE_FEATURE_MISSING = re.compile(r"response_format|output_config|output_format|json_schema", re.IGNORECASE)
_SETTING_MISSING = re.compile(
    r"unsupported|not support|not permitted|unrecogni[sz]ed|unknown parameter|deprecated", re.IGNORECASE
)
_MODEL_MISSING = re.compile(
    r"model\W.*(not found|not exist|not available|unknown)|model_not_found|(invalid|unknown) model|^model: ",
    re.IGNORECASE | re.DOTALL,
)


class Bounds(TypedDict, total=False):
    """What a client keeps to; see RetryingModel."""

    timeout_seconds: float
    max_concurrency: int
    max_attempts: int
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What one successful HTTP exchange brought. `declined`: the model would not answer this, and would not again."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    truncated: bool = False
    declined: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """How one HTTP exchange failed: a value, so that no error of a client, with its headers, hangs on ours.

    `words` are what the server or the client said; `status` is set for an answer that is an error.
    """

    kind: Literal["silent", "unreachable", "not_understood", "status"]
    words: str = ""
    status: int = 0
    retry_after_seconds: float | None = None


class RetryingModel(ABC):
    """ChatModel over HTTP, with its own retries, one bound on time and one on concurrency.

    `timeout_seconds` (120) bounds one HTTP exchange, `total_seconds` (600) one `complete` call with all its retries
    and waits, but not the wait for a free slot among `max_concurrency` (4). `max_attempts` (4) bounds the HTTP
    attempts, and separately the tries to get an answer that meets the schema. `prefix` stands before the model's name
    wherever people see it.
    """

    # Fields of the request that a server may refuse by name, and that can then be left out.
    dispensable: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, model: str, api_key: str, advice: Advice, *, prefix: str = "", **bounds: Unpack[Bounds]) -> None:
        self._max_concurrency = bounds.get("max_concurrency", 4)
        self._max_attempts = bounds.get("max_attempts", 4)
        if self._max_concurrency < 1 or self._max_attempts < 1:
            raise ValueError("max_concurrency and max_attempts must be at least 1")
        self._model = model
        self._api_key = api_key
        self._advice = advice
        self._prefix = prefix
        self._timeout_seconds = bounds.get("timeout_seconds", 120.0)
        self._total_seconds = bounds.get("total_seconds", 600.0)
        self._slots = asyncio.Semaphore(self._max_concurrency)
        self._structured_output = True
        self._refused_fields: set[str] = set()

    @abstractmethod
    async def _exchange(self, request: ChatRequest, seconds: float) -> Reply | Fault:
        """One HTTP exchange within `seconds`. With a schema in the request, the server is to keep to it."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections; the client opens new ones when it is used again."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @property
    def model(self) -> str:
        """Name of the model, as it is asked for: a provider's begins with its name and a slash."""
        return self._prefix + self._model

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def complete(self, request: ChatRequest) -> ChatCompletion:
        """Answer the request, or raise an LLMError once retries, tries or time are used up."""
        async with self._slots:
            return await self._valid_answer(request, time.monotonic() + self._total_seconds)

    async def _valid_answer(self, request: ChatRequest, deadline: float) -> ChatCompletion:
        prompt_tokens = completion_tokens = 0
        current, text, problem = request, "", ""
        for number in range(1, self._max_attempts + 1):
            reply = await self._send(current, deadline)
            text = reply.text
            prompt_tokens += reply.prompt_tokens
            completion_tokens += reply.completion_tokens
            parsed = None if request.schema is None else find_object(text)
            problem = "the model declines to answer this" if reply.declined else _answer_problem(request, parsed)
            if not problem:
                return ChatCompletion(
                    text=text,
                    parsed=parsed,
                    prompt_tokens=prompt_tokens,
                    completion_tokens=completion_tokens,
                    model=self.model,
                )
            if reply.declined:
                break
            current = _corrected(request, reply, problem, number)
        tries = f"{number} tries" if number > 1 else "its only try"
        raise LLMInvalidOutput(
            f"The model '{self._model}' gave no valid answer in {tries} ({problem}). {self._advice.weak}",
            text=text,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            **self._advice.context,
        )

    async def _send(self, request: ChatRequest, deadline: float) -> Reply:
        """One reply, through the retries."""
        structured = request.schema is not None and self._structured_output
        attempt = 0
        while True:
            seconds = min(self._timeout_seconds, deadline - time.monotonic())
            sent = self.dispensable - self._refused_fields
            outcome = await self._bounded(request if structured else _with_schema_in_prompt(request), seconds)
            if isinstance(outcome, Reply):
                return outcome
            # Neither is a fault: the same question again, asked as the server takes it. They count as no attempt.
            if structured and self._lacks_structured_output(outcome):
                structured = False
                continue
            if self._lacks_a_field(outcome, sent):
                continue
            attempt += 1
            error = self._error(outcome, seconds)
            wait = _backoff_seconds(attempt, outcome.retry_after_seconds)
            if not error.retryable or attempt >= self._max_attempts or time.monotonic() + wait >= deadline:
                raise error
            await asyncio.sleep(wait)

    async def _bounded(self, request: ChatRequest, seconds: float) -> Reply | Fault:
        try:
            # The clients' own timeouts restart with every byte, so a trickling server would never run into them.
            async with asyncio.timeout(seconds):
                outcome = await self._exchange(request, max(seconds, 0.001))
        except TimeoutError:
            return Fault("silent")
        # Some servers say which key it was that they refuse.
        return replace(outcome, words=quoted(outcome.words, self._api_key)) if isinstance(outcome, Fault) else outcome

    def _lacks_structured_output(self, fault: Fault) -> bool:
        """Whether the server cannot keep to a schema: to this one, or, when it names the feature itself, to any."""
        if fault.status not in (400, 422, 501) or not _NO_STRUCTURED_OUTPUT.search(fault.words):
            return False
        if _WHOLE_FEATURE_MISSING.search(fault.words):
            self._structured_output = False
        return True

    def _lacks_a_field(self, fault: Fault, sent: Set[str]) -> bool:
        """Whether the server refuses some of the `sent` fields, which are left out from now on."""
        if fault.status not in (400, 422) or not _SETTING_MISSING.search(fault.words):
            return False
        named = {name for name in sent if re.search(rf"\b{name}\b", fault.words)}
        self._refused_fields |= named
        return bool(named)

    def _error(self, fault: Fault, seconds: float) -> LLMError:
        advice, words = self._advice, fault.words
        server = advice.server[0].upper() + advice.server[1:]
        said = f" ({words})" if words else ""
        match fault.kind:
            case "silent":
                detail = f"{server} did not answer within {max(seconds, 0):.0f} s. {advice.silent}"
                return LLMUnavailable(detail, **advice.context)
            case "unreachable":
                detail = f"Cannot reach {advice.server}{said}. {advice.unreachable}"
                return LLMUnavailable(detail, **advice.context)
            case "not_understood":
                detail = f"{server} answered with something else than a chat completion{said}. {advice.not_understood}"
                return LLMUnavailable(detail, **advice.context)
        return self._status_error(fault, server)

    def _status_error(self, fault: Fault, server: str) -> LLMError:
        advice, status, words = self._advice, fault.status, fault.words
        if status == 429:
            detail = f"{server} limits the rate of requests: {words}. {advice.busy}"
            return LLMRateLimited(detail, fault.retry_after_seconds, **advice.context)
        if status in RETRIED_STATUSES or (status >= 500 and status != 501):
            return LLMUnavailable(f"{server} failed with status {status}: {words}", **advice.context)
        if status in (400, 404) and _MODEL_MISSING.search(words):
            detail = f"{server} has no model '{self._model}': {words}. {advice.no_such_model}"
            return LLMModelNotFound(detail, **advice.context)
        detail = f"{server} refused with status {status}: {words}. {advice.of_status(status)}"
        return LLMRefused(detail, status, **advice.context)


def _answer_problem(request: ChatRequest, parsed: dict[str, Any] | None) -> str:
    if request.schema is None:
        return ""
    if parsed is None:
        return "the answer holds no JSON object"
    return schema_violation(parsed, request.schema) or ""


def _corrected(request: ChatRequest, reply: Reply, problem: str, number: int) -> ChatRequest:
    """The request for the next try: the model sees its fault, and samples differently."""
    max_tokens = request.max_tokens * 2 if reply.truncated else request.max_tokens
    fault = ChatMessage("user", f"That was not valid: {problem}. Answer again with one complete JSON object only.")
    return replace(
        request,
        # A truncated answer is not shown: it would eat the context that the next one needs.
        messages=request.messages
        if reply.truncated or not reply.text
        else (*request.messages, ChatMessage("assistant", reply.text), fault),
        max_tokens=max_tokens,
        temperature=min(1.0, request.temperature + 0.2 * number),
        seed=None if request.seed is None else request.seed + number,
    )


def _with_schema_in_prompt(request: ChatRequest) -> ChatRequest:
    """The request with its schema after the last message, which is the user's, instead of beside the messages."""
    if request.schema is None:
        return request
    *before, last = request.messages
    asked = (
        "Answer with one JSON object only, without any other text, that meets this JSON Schema:\n"
        f"{json.dumps(request.schema, ensure_ascii=False)}"
    )
    return replace(request, messages=(*before, ChatMessage(last.role, f"{last.content}\n\n{asked}")), schema=None)


def _backoff_seconds(attempt: int, retry_after_seconds: float | None) -> float:
    """Wait before the next attempt: what the server asked for, else exponential, both with jitter against a herd."""
    if retry_after_seconds is not None:
        return retry_after_seconds + random.uniform(0.0, 0.1)
    ceiling = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))
    return random.uniform(ceiling / 2, ceiling)
