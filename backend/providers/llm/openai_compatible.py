"""One client for every server that speaks the OpenAI chat API: Ollama, vLLM, llama.cpp, LM Studio and hosted ones."""

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from backend.providers.llm.base import (
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    LLMInvalidOutput,
    LLMModelNotFound,
    LLMRateLimited,
    LLMRefused,
    LLMUnavailable,
)
from backend.providers.llm.json_answer import find_object, schema_violation

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

RETRIED_STATUSES = {408, 409, 425, 429}
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 20.0
QUOTED_CHARACTERS = 400
# Words with which servers say that they cannot constrain the output, as opposed to any other 400.
_NO_STRUCTURED_OUTPUT = re.compile(r"response_format|json_schema|schema|grammar|structured|guided", re.IGNORECASE)
_WHOLE_FEATURE_MISSING = re.compile(r"response_format|json_schema", re.IGNORECASE)
_MODEL_MISSING = re.compile(
    r"model\W.*(not found|not exist|not available|unknown)|model_not_found", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class _Reply:
    """What one successful HTTP exchange brought."""

    text: str
    truncated: bool
    prompt_tokens: int
    completion_tokens: int


class _StructuredOutputRejected(Exception):
    """The server answered 400 to response_format; `for_good` when it named the feature itself."""

    def __init__(self, for_good: bool) -> None:
        self.for_good = for_good


class OpenAICompatibleModel:
    """ChatModel over HTTP, with its own retries, one bound on time and one on concurrency.

    `timeout_seconds` bounds one HTTP exchange, `total_seconds` one `complete` call with all its retries and waits, but
    not the wait for a free slot among `max_concurrency`. `max_attempts` bounds the HTTP attempts, and separately the
    tries to get an answer that meets the schema.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: str | None = None,
        timeout_seconds: float = 120.0,
        max_concurrency: int = 4,
        max_attempts: int = 4,
        total_seconds: float = 600.0,
    ) -> None:
        if max_concurrency < 1 or max_attempts < 1:
            raise ValueError("max_concurrency and max_attempts must be at least 1")
        self._base_url = base_url
        self._model = model
        self._api_key = api_key or None
        self._timeout_seconds = timeout_seconds
        self._total_seconds = total_seconds
        self._max_attempts = max_attempts
        self._slots = asyncio.Semaphore(max_concurrency)
        self._structured_output = True
        self._client: AsyncOpenAI | None = None

    @property
    def model(self) -> str:
        """Name of the model, as the server knows it."""
        return self._model

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; the client opens new ones when it is used again."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def complete(self, request: ChatRequest) -> ChatCompletion:
        """Answer the request, or raise an LLMError once retries, tries or time are used up."""
        async with self._slots:
            deadline = time.monotonic() + self._total_seconds
            return await self._valid_answer(request, deadline)

    async def _valid_answer(self, request: ChatRequest, deadline: float) -> ChatCompletion:
        prompt_tokens = completion_tokens = 0
        current, text, problem = request, "", ""
        for number in range(self._max_attempts):
            reply = await self._send(current, deadline)
            text = reply.text
            prompt_tokens += reply.prompt_tokens
            completion_tokens += reply.completion_tokens
            parsed = None if request.schema is None else find_object(text)
            problem = _answer_problem(request, parsed)
            if not problem:
                return ChatCompletion(
                    text=text,
                    parsed=parsed,
                    prompt_tokens=prompt_tokens,
                    completion_tokens=completion_tokens,
                    model=self._model,
                )
            current = _corrected(request, reply, problem, number + 1)
        raise LLMInvalidOutput(
            f"The model '{self._model}' gave no valid answer in {self._max_attempts} tries ({problem}). "
            "A stronger model usually helps: change LLM_MODEL",
            text=text,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    async def _send(self, request: ChatRequest, deadline: float) -> _Reply:
        """One reply, through the retries."""
        structured = request.schema is not None and self._structured_output
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._exchange(request, structured, deadline)
            except _StructuredOutputRejected as rejection:
                # Not a fault: the same question again, with the schema in the prompt. It counts as no attempt.
                structured = False
                self._structured_output = self._structured_output and not rejection.for_good
                attempt -= 1
            except (LLMUnavailable, LLMRateLimited) as error:
                wait = _backoff_seconds(attempt, getattr(error, "retry_after_seconds", None))
                if attempt >= self._max_attempts or time.monotonic() + wait >= deadline:
                    raise
                await asyncio.sleep(wait)

    async def _exchange(self, request: ChatRequest, structured: bool, deadline: float) -> _Reply:
        """One HTTP exchange; every failure leaves as an LLMError."""
        import openai  # here, so that a process that never generates does not pay a second for it

        seconds = min(self._timeout_seconds, deadline - time.monotonic())
        try:
            # The SDK's own timeout restarts with every byte, so a trickling server would never run into it.
            async with asyncio.timeout(seconds):
                answer = await self._connected().chat.completions.create(**self._arguments(request, structured))
        # `from None` throughout: the cause's text may echo the key, and would be printed with a traceback.
        except (TimeoutError, openai.APITimeoutError):
            raise LLMUnavailable(
                f"The LLM server at {self._base_url} did not answer within {max(seconds, 0):.0f} s. "
                "Raise LLM_TIMEOUT_SECONDS, lower LLM_MAX_CONCURRENCY or use a faster model"
            ) from None
        except openai.APIStatusError as error:
            raise self._status_error(error, structured) from None
        except openai.APIConnectionError as error:
            cause = self._redacted(str(error.__cause__ or error))
            raise LLMUnavailable(
                f"Cannot reach the LLM server at {self._base_url} ({cause}). Start it, or change LLM_BASE_URL"
            ) from None
        except openai.OpenAIError as error:  # a body that is no chat completion
            raise LLMUnavailable(
                f"The LLM server at {self._base_url} answered with something else than a chat completion "
                f"({self._redacted(str(error))}). Check LLM_BASE_URL; it usually ends with /v1"
            ) from None
        choices = getattr(answer, "choices", None)
        if not choices:
            raise LLMUnavailable(
                f"The LLM server at {self._base_url} answered without a choice. "
                "Check LLM_BASE_URL; it usually ends with /v1"
            )
        usage = answer.usage
        return _Reply(
            text=choices[0].message.content or "",
            truncated=choices[0].finish_reason == "length",
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )

    def _connected(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        if self._client is None:
            self._client = AsyncOpenAI(
                base_url=self._base_url,
                # Never None: the SDK would then send OPENAI_API_KEY to whatever server this is.
                api_key=self._api_key or "none",
                max_retries=0,
                timeout=self._timeout_seconds,
            )
        return self._client

    def _arguments(self, request: ChatRequest, structured: bool) -> dict[str, Any]:
        messages = request.messages
        if request.schema is not None and not structured:
            messages = _with_schema_in_prompt(request)
        arguments: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        if request.seed is not None:
            arguments["seed"] = request.seed
        if structured:
            schema = {"name": request.schema_name, "strict": True, "schema": request.schema}
            arguments["response_format"] = {"type": "json_schema", "json_schema": schema}
        return arguments

    def _status_error(self, error: "APIStatusError", structured: bool) -> Exception:
        status, words = error.status_code, self._server_words(error)
        if status == 429:
            return LLMRateLimited(
                f"The LLM server at {self._base_url} limits the rate of requests: {words}. "
                "Wait, or lower LLM_MAX_CONCURRENCY",
                _retry_after_seconds(error),
            )
        if status in RETRIED_STATUSES or (status >= 500 and status != 501):
            return LLMUnavailable(f"The LLM server at {self._base_url} failed with status {status}: {words}")
        if structured and status in (400, 422, 501) and _NO_STRUCTURED_OUTPUT.search(words):
            return _StructuredOutputRejected(for_good=bool(_WHOLE_FEATURE_MISSING.search(words)))
        if status in (400, 404) and _MODEL_MISSING.search(words):
            names = f"{self._base_url.rstrip('/')}/models"
            return LLMModelNotFound(
                f"The LLM server at {self._base_url} has no model '{self._model}': {words}. With Ollama run "
                f"`ollama pull {self._model}`; otherwise set LLM_MODEL to a name that {names} lists"
            )
        advice = {
            401: "Set LLM_API_KEY to a valid key",
            403: "Set LLM_API_KEY to a key that may use this model",
            404: "Check LLM_BASE_URL; it usually ends with /v1",
        }.get(status, "Check LLM_BASE_URL and LLM_MODEL")
        return LLMRefused(f"The LLM server at {self._base_url} refused with status {status}: {words}. {advice}", status)

    def _server_words(self, error: "APIStatusError") -> str:
        body = error.body
        if isinstance(body, dict):
            inner = body.get("error", body)
            body = inner.get("message", inner) if isinstance(inner, dict) else inner
        words = " ".join(str(body or error.response.text or error.response.reason_phrase).split())
        return self._redacted(words)[:QUOTED_CHARACTERS].rstrip(". ")

    def _redacted(self, text: str) -> str:
        return text.replace(self._api_key, "[key]") if self._api_key else text


def _answer_problem(request: ChatRequest, parsed: dict[str, Any] | None) -> str:
    if request.schema is None:
        return ""
    if parsed is None:
        return "the answer holds no JSON object"
    return schema_violation(parsed, request.schema) or ""


def _corrected(request: ChatRequest, reply: _Reply, problem: str, number: int) -> ChatRequest:
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


def _with_schema_in_prompt(request: ChatRequest) -> tuple[ChatMessage, ...]:
    """The messages with the schema after the last one, which is the user's."""
    *before, last = request.messages
    asked = (
        "Answer with one JSON object only, without any other text, that meets this JSON Schema:\n"
        f"{json.dumps(request.schema, ensure_ascii=False)}"
    )
    return (*before, ChatMessage(last.role, f"{last.content}\n\n{asked}"))


def _retry_after_seconds(error: "APIStatusError") -> float | None:
    """Seconds of a Retry-After header (a number or a date); None without one."""
    value = error.response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _backoff_seconds(attempt: int, retry_after_seconds: float | None) -> float:
    """Wait before the next attempt: what the server asked for, else exponential, both with jitter against a herd."""
    if retry_after_seconds is not None:
        return retry_after_seconds + random.uniform(0.0, 0.1)
    ceiling = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))
    return random.uniform(ceiling / 2, ceiling)
