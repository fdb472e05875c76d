"""A real HTTP server that behaves as outside servers do, badly included, in the dialect of each client."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from backend.providers.llm.advice import of_account
from backend.providers.llm.anthropic import AnthropicModel
from backend.providers.llm.asking import RetryingModel
from backend.providers.llm.base import ChatMessage, ChatRequest
from backend.providers.llm.mistral import MistralModel
from backend.providers.llm.openai_compatible import OpenAICompatibleModel

KEY = "CanaryCanaryCanaryCanary32chars0"
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string", "pattern": r"\?$"}},
    "required": ["question"],
    "additionalProperties": False,
}
ASK = ChatRequest(
    messages=(ChatMessage("system", "Be short."), ChatMessage("user", "Ask something.")), schema=SCHEMA, seed=7
)
GOOD = '{"question": "Why?"}'


class Dialect:
    """How OpenAI's chat API, and those that follow it, write answers and errors."""

    name = "openai"
    path = "/v1/chat/completions"
    base_path = "/v1"
    decline = {"finish_reason": "content_filter"}

    def client(self, url: str, **options: Any) -> RetryingModel:
        return OpenAICompatibleModel(base_url=url, **options)

    def answer(self, text: str, finish: str = "stop") -> Response:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": finish, "message": message}
        usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        return JSONResponse({**head, "choices": [choice], "usage": usage})

    def error(self, status: int, message: str, **headers: str) -> Response:
        return JSONResponse({"error": {"message": message}}, status_code=status, headers=headers)

    def schema_in(self, body: dict[str, Any]) -> Any:
        return body.get("response_format", {}).get("json_schema", {}).get("schema")


class MistralDialect(Dialect):
    """Errors have their sentence at the top."""

    name = "mistral"
    base_path = ""

    def client(self, url: str, **options: Any) -> RetryingModel:
        return MistralModel(base_url=url, advice=of_account("mistral", own_key=True), **options)

    def error(self, status: int, message: str, **headers: str) -> Response:
        body = {"object": "error", "message": message, "type": "invalid_request_error", "code": None}
        return JSONResponse(body, status_code=status, headers=headers)


class AnthropicDialect(Dialect):
    """The Messages API."""

    name = "anthropic"
    path = "/v1/messages"
    base_path = ""

    def client(self, url: str, **options: Any) -> RetryingModel:
        return AnthropicModel(base_url=url, advice=of_account("anthropic", own_key=True), **options)

    def answer(self, text: str, finish: str = "stop") -> Response:
        stop_reason = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}[finish]
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
        # Tokens that went to or came from a cache are counted apart there.
        usage = {
            "input_tokens": 6,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 2,
            "output_tokens": 3,
        }
        content = [{"type": "text", "text": text}] if text else []
        return JSONResponse({**head, "content": content, "stop_reason": stop_reason, "usage": usage})

    def error(self, status: int, message: str, **headers: str) -> Response:
        body = {"type": "error", "error": {"type": "some_error", "message": message}}
        return JSONResponse(body, status_code=status, headers=headers)

    def schema_in(self, body: dict[str, Any]) -> Any:
        return body.get("output_config", {}).get("format", {}).get("schema")


DIALECTS = {dialect.name: dialect for dialect in (Dialect(), AnthropicDialect(), MistralDialect())}


@dataclass
class ChatServer:
    """Plays the responses of `script` in turn, the last one again and again, and keeps what it was sent."""

    dialect: Dialect
    url: str = ""
    script: list[Callable[[], Response]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list, repr=False)
    strays: list[dict[str, str]] = field(default_factory=list, repr=False)
    delay_seconds: float = 0.0
    running: int = 0
    most_running: int = 0

    async def chat(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay_seconds)
        finally:
            self.running -= 1
        return (self.script.pop(0) if len(self.script) > 1 else self.script[0])()

    async def elsewhere(self, request: Request) -> Response:
        self.strays.append(dict(request.headers))
        return self.dialect.answer(GOOD)

    def plays(self, *responses: Callable[[], Response]) -> None:
        self.script = list(responses)

    def answers(self, *texts: str) -> None:
        self.plays(*(lambda text=text: self.dialect.answer(text) for text in texts))  # type: ignore[misc]

    def client(self, **options: Any) -> RetryingModel:
        url = options.pop("base_url", self.url)
        return self.dialect.client(url, **{"model": "m", "api_key": KEY, "max_attempts": 3, **options})


@pytest.fixture
async def server(request: pytest.FixtureRequest) -> AsyncIterator[ChatServer]:
    """The OpenAI dialect, unless a test is parametrized with the name of another."""
    chat = ChatServer(DIALECTS[getattr(request, "param", "openai")])
    routes = [Route(chat.dialect.path, chat.chat, methods=["POST"]), Route("/elsewhere", chat.elsewhere)]
    app = Starlette(routes=routes)
    http = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off"))
    task = asyncio.create_task(http.serve())
    while not http.started:
        await asyncio.sleep(0.01)
    chat.url = f"http://127.0.0.1:{http.servers[0].sockets[0].getsockname()[1]}{chat.dialect.base_path}"
    yield chat
    http.should_exit = http.force_exit = True
    await task
