"""Anthropic's models through its SDK: the Messages API, with the answer's schema in `output_config`."""

from typing import TYPE_CHECKING, Any, Unpack

from backend.providers.answers import retry_after_seconds, words_of
from backend.providers.llm.advice import Advice
from backend.providers.llm.asking import Bounds, Fault, Reply, RetryingModel
from backend.providers.llm.base import ChatRequest

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

PREFIX = "anthropic/"


class AnthropicModel(RetryingModel):
    """ChatModel of the Messages API, which has neither a temperature nor a seed: both of a request are left out."""

    def __init__(self, *, base_url: str, model: str, api_key: str, advice: Advice, **bounds: Unpack[Bounds]) -> None:
        super().__init__(model, api_key, advice, prefix=PREFIX, **bounds)
        self._base_url = base_url
        self._client: AsyncAnthropic | None = None

    async def aclose(self) -> None:
        """Close the connections; the client opens new ones when it is used again."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _exchange(self, request: ChatRequest, seconds: float) -> Reply | Fault:
        import anthropic  # here: it takes more than a second

        try:
            message = await self._connected().messages.create(
                **message_arguments(self._model, request), timeout=seconds
            )
        except anthropic.APITimeoutError:
            return Fault("silent")
        except anthropic.APIStatusError as error:
            words = words_of(error.response.content) or error.response.reason_phrase
            wait = retry_after_seconds(error.response.headers.get("retry-after"))
            return Fault("status", words, error.status_code, wait)
        except anthropic.APIConnectionError as error:
            return Fault("unreachable", str(error.__cause__ or error))
        except (anthropic.AnthropicError, ValueError) as error:  # a body that is no message
            return Fault("not_understood", str(error))
        blocks, usage = getattr(message, "content", None), getattr(message, "usage", None)
        if not isinstance(blocks, list) or usage is None:
            return Fault("not_understood", "it is no message")
        text = "".join(block.text for block in blocks if block.type == "text")
        cached = (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
        return Reply(
            text,
            usage.input_tokens + cached,
            usage.output_tokens,
            truncated=message.stop_reason == "max_tokens",
            declined=message.stop_reason == "refusal",
        )

    def _connected(self) -> "AsyncAnthropic":
        from anthropic import AsyncAnthropic

        if self._client is None:
            self._client = AsyncAnthropic(
                base_url=self._base_url,
                # Never None: the SDK would then look for credentials in the environment and on disk.
                api_key=self._api_key or "none",
                max_retries=0,
                timeout=self._timeout_seconds,
                open_telemetry=False,
            )
        return self._client


def message_arguments(model: str, request: ChatRequest) -> dict[str, Any]:
    """What `messages.create` takes for a request: system messages apart, and only such a schema as the API knows."""
    arguments: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "messages": [
            {"role": message.role, "content": message.content}
            for message in request.messages
            if message.role != "system"
        ],
    }
    if system := "\n\n".join(message.content for message in request.messages if message.role == "system"):
        arguments["system"] = system
    if request.schema is not None:
        from anthropic import transform_schema

        # Bounds of lengths and numbers go into descriptions there; the answer is checked against the whole schema.
        schema = transform_schema(dict(request.schema))
        arguments["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return arguments
