"""What a finished model is asked, and the parts of its answer, whoever computes it."""

from dataclasses import dataclass
from typing import Any, Literal

from backend.providers.llm.base import ChatMessage

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A conversation that waits for its answer. Greedy at temperature 0; `stop` are texts that end the answer."""

    messages: tuple[ChatMessage, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def characters(self) -> int:
        return sum(len(message.content) for message in self.messages)

    def as_command(self) -> dict[str, Any]:
        """As the serving child takes it, and as it travels there."""
        return {
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": list(self.stop),
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text of an answer."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an answer ended. Tokens are None where nobody counts them; times are the model's own, without the way."""

    finish_reason: FinishReason
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_ms: float | None = None
    tokens_per_second: float | None = None


Part = Piece | Ending
