"""Mistral's models through its SDK: chat completions with the answer's schema in `response_format`."""

from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from backend.providers.answers import retry_after_seconds, words_of
from backend.providers.llm.advice import Advice
from backend.providers.llm.asking import Bounds, Fault, Reply, RetryingModel
from backend.providers.llm.base import ChatRequest

if TYPE_CHECKING:
    import httpx2
    from mistralai.client import Mistral

PREFIX = "mistral/"


class MistralModel(RetryingModel):
    """ChatModel of Mistral's chat completions. The SDK retries nothing unless it is told to."""

    dispensable: ClassVar[frozenset[str]] = frozenset({"temperature", "random_seed"})

    def __init__(self, *, base_url: str, model: str, api_key: str, advice: Advice, **bounds: Unpack[Bounds]) -> None:
        super().__init__(model, api_key, advice, prefix=PREFIX, **bounds)
        self._base_url = base_url
        self._client: Mistral | None = None
        self._http: httpx2.AsyncClient | None = None

    async def aclose(self) -> None:
        """Close the connections; the client opens new ones when it is used again."""
        http, self._http, self._client = self._http, None, None
        if http is not None:
            await http.aclose()

    async def _exchange(self, request: ChatRequest, seconds: float) -> Reply | Fault:
        import httpx2
        from mistralai.client import errors

        try:
            answer = await self._connected().chat.complete_async(
                **self._arguments(request), timeout_ms=max(1, int(seconds * 1000))
            )
        except errors.MistralError as error:
            if error.status_code < 400:  # a body that is no chat completion
                return Fault("not_understood", error.message)
            words = words_of(error.body.encode()) or error.raw_response.reason_phrase
            return Fault("status", words, error.status_code, retry_after_seconds(error.headers.get("retry-after")))
        except httpx2.TimeoutException:
            return Fault("silent")
        except (httpx2.HTTPError, errors.NoResponseError) as error:
            return Fault("unreachable", str(error) or type(error).__name__)
        except ValueError as error:  # JSON that breaks off
            return Fault("not_understood", str(error))
        if not answer.choices or answer.choices[0].message is None:
            return Fault("not_understood", "it has no choice")
        return Reply(
            _text_of(answer.choices[0].message.content),
            answer.usage.prompt_tokens or 0,
            answer.usage.completion_tokens or 0,
            truncated=answer.choices[0].finish_reason in ("length", "model_length"),
        )

    def _connected(self) -> "Mistral":
        import httpx2
        from mistralai.client import Mistral
        from mistralai.client.utils.logger import NoOpLogger

        if self._client is None:
            self._http = httpx2.AsyncClient()  # follows no redirect, unlike the SDK's own
            self._client = Mistral(
                # Never None: the SDK would then take MISTRAL_API_KEY or a token from a file.
                api_key=self._api_key or "none",
                server_url=self._base_url,
                async_client=self._http,
                # The one that MISTRAL_DEBUG switches on writes every header.
                debug_logger=NoOpLogger(),
            )
        return self._client

    def _arguments(self, request: ChatRequest) -> dict[str, Any]:
        named = {"temperature": request.temperature, "random_seed": request.seed}
        arguments: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "max_tokens": request.max_tokens,
            **{name: value for name, value in named.items() if name not in self._refused_fields and value is not None},
        }
        if request.schema is not None:
            schema = {"name": request.schema_name, "strict": True, "schema_definition": dict(request.schema)}
            arguments["response_format"] = {"type": "json_schema", "json_schema": schema}
        return arguments


def _text_of(content: Any) -> str:
    """The text of a message, which models that think give as parts."""
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content if part.type == "text") if isinstance(content, list) else ""
