"""What every language model client offers: the ChatModel Protocol, its request and answer, and its errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from backend.kit.errors import DomainError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question to a model; with a `schema` (JSON Schema of an object) the answer is parsed and validated."""

    messages: tuple[ChatMessage, ...]
    schema: Mapping[str, Any] | None = None
    schema_name: str = "answer"
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletion:
    """A model's answer. `parsed` is None when no schema was asked for; tokens count all tries, failed ones included."""

    text: str
    parsed: dict[str, Any] | None
    prompt_tokens: int
    completion_tokens: int
    model: str


class ChatModel(Protocol):
    """A language model that can be asked from many tasks at once; it bounds its own concurrency."""

    @property
    def model(self) -> str:
        """Name of the model, as it is asked for: a provider's begins with its name and a slash."""
        ...

    async def complete(self, request: ChatRequest) -> ChatCompletion:
        """Answer one request, or raise an LLMError."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class LLMError(DomainError):
    """Base of what can go wrong with a language model; the sentence is for the user and never holds the API key."""

    status = 502
    code = "LLM_ERROR"


class LLMUnavailable(LLMError):
    """The server could not be reached, timed out or answered 5xx, every time. Trying later may help."""

    status = 503
    code = "LLM_UNAVAILABLE"
    retryable = True


class LLMRateLimited(LLMError):
    """The server still answered 429. `retry_after_seconds` is what it asked for, when it said so."""

    status = 503
    code = "LLM_RATE_LIMITED"
    retryable = True

    def __init__(self, detail: str, retry_after_seconds: float | None = None, **context: Any) -> None:
        super().__init__(detail, **context)
        self.retry_after_seconds = retry_after_seconds


class LLMRefused(LLMError):
    """The server refused the request (4xx, wrong key included); the sentence quotes its own words."""

    code = "LLM_REFUSED"

    def __init__(self, detail: str, server_status: int, **context: Any) -> None:
        super().__init__(detail, server_status=server_status, **context)
        self.server_status = server_status


class LLMModelNotFound(LLMError):
    """The server has no model of this name; the sentence says how to get it or which setting to change."""

    status = 400
    code = "LLM_MODEL_NOT_FOUND"


class LLMInvalidOutput(LLMError):
    """The answer did not meet the schema in any try. `text` is the last one; the tokens of all tries were spent."""

    code = "LLM_INVALID_OUTPUT"

    def __init__(self, detail: str, *, text: str, prompt_tokens: int, completion_tokens: int, **context: Any) -> None:
        super().__init__(detail, **context)
        self.text = text
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
