"""Answers of models at providers that speak the OpenAI chat API by plain REST."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from backend.providers.llm.base import ChatMessage
from backend.providers.tuning.rest import ANSWER_SECONDS, RestClient


class RestChat:
    """`answer` and `stream` of a TuningProvider; a subclass says whom to ask, and where."""

    _chat_client: RestClient
    _chat_path: str

    async def answer(
        self, model: str, messages: Sequence[ChatMessage], *, max_tokens: int = 512, temperature: float = 0.0
    ) -> str:
        return await complete(self._chat_client, self._chat_path, chat_body(model, messages, max_tokens, temperature))

    def stream(
        self, model: str, messages: Sequence[ChatMessage], *, max_tokens: int = 512, temperature: float = 0.0
    ) -> AsyncIterator[str]:
        return pieces(self._chat_client, self._chat_path, chat_body(model, messages, max_tokens, temperature))


def chat_body(model: str, messages: Sequence[ChatMessage], max_tokens: int, temperature: float) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "max_tokens": max_tokens,
        "temperature": temperature,
    }


async def complete(client: RestClient, path: str, body: dict[str, Any]) -> str:
    """The text of the first choice. Raises TuningErrors."""
    answer = await client.call("POST", path, body=body, seconds=ANSWER_SECONDS)
    try:
        content = answer["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        raise client.broken("an answer without a choice") from None
    return text_of(content)


async def pieces(client: RestClient, path: str, body: dict[str, Any]) -> AsyncIterator[str]:
    """The text of the first choice as it comes. Raises TuningErrors."""
    async for event in client.events(path, {**body, "stream": True}):
        choices = event.get("choices") or [{}]
        delta = choices[0].get("delta") if isinstance(choices[0], dict) else None
        if text := text_of((delta or {}).get("content")):
            yield text


def text_of(content: Any) -> str:
    """The text of a message's content, which some models give as a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
