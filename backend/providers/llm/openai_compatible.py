"""One client for every server that speaks the OpenAI chat API: Ollama, vLLM, llama.cpp, LM Studio and hosted ones."""

from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from backend.providers.answers import retry_after_seconds, words_of
from backend.providers.llm.advice import Advice, of_endpoint
from backend.providers.llm.asking import Bounds, Fault, Reply, RetryingModel
from backend.providers.llm.base import ChatRequest

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class OpenAICompatibleModel(RetryingModel):
    """ChatModel of a server's chat completions. Without an `advice`, errors name the settings of LLM_BASE_URL."""

    # Models that reason refuse the first two, and call the third max_completion_tokens.
    dispensable: ClassVar[frozenset[str]] = frozenset({"temperature", "seed", "max_tokens"})

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: str | None = None,
        advice: Advice | None = None,
        prefix: str = "",
        **bounds: Unpack[Bounds],
    ) -> None:
        super().__init__(model, api_key or "", advice or of_endpoint(base_url, model), prefix=prefix, **bounds)
        self._base_url = base_url
        self._client: AsyncOpenAI | None = None

    async def aclose(self) -> None:
        """Close the connections; the client opens new ones when it is used again."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _exchange(self, request: ChatRequest, seconds: float) -> Reply | Fault:
        import openai  # here, so that a process that never generates does not pay a second for it

        try:
            answer = await self._connected().chat.completions.create(**self._arguments(request), timeout=seconds)
        except openai.APITimeoutError:
            return Fault("silent")
        except openai.APIStatusError as error:
            words = words_of(error.response.content) or error.response.reason_phrase
            wait = retry_after_seconds(error.response.headers.get("retry-after"))
            return Fault("status", words, error.status_code, wait)
        except openai.APIConnectionError as error:
            return Fault("unreachable", str(error.__cause__ or error))
        except (openai.OpenAIError, ValueError) as error:  # a body that is no chat completion
            return Fault("not_understood", str(error))
        choices = getattr(answer, "choices", None)
        if not choices:
            return Fault("not_understood", "it has no choice")
        message, reason, usage = choices[0].message, choices[0].finish_reason, answer.usage
        return Reply(
            message.content or "",
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
            truncated=reason == "length",
            declined=not message.content and (reason == "content_filter" or bool(message.refusal)),
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
            # Read from OPENAI_ORG_ID and OPENAI_PROJECT_ID, whose key is another one.
            self._client.organization = self._client.project = None
        return self._client

    def _arguments(self, request: ChatRequest) -> dict[str, Any]:
        named = {"temperature": request.temperature, "max_tokens": request.max_tokens, "seed": request.seed}
        arguments: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            **{name: value for name, value in named.items() if name not in self._refused_fields and value is not None},
        }
        if "max_tokens" in self._refused_fields:
            arguments["max_completion_tokens"] = request.max_tokens
        if request.schema is not None:
            schema = {"name": request.schema_name, "strict": True, "schema": request.schema}
            arguments["response_format"] = {"type": "json_schema", "json_schema": schema}
        return arguments
