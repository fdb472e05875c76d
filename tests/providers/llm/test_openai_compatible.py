"""The OpenAI-compatible client against a real HTTP server that behaves as outside servers do, badly included."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from backend.providers.llm.base import (
    ChatMessage,
    ChatRequest,
    LLMInvalidOutput,
    LLMModelNotFound,
    LLMRateLimited,
    LLMRefused,
    LLMUnavailable,
)
from backend.providers.llm.openai_compatible import OpenAICompatibleModel

KEY = "sk-canary-5d41402abc4b2a76"
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string", "pattern": r"\?$"}},
    "required": ["question"],
    "additionalProperties": False,
}
ASK = ChatRequest(messages=(ChatMessage("user", "Ask something."),), schema=SCHEMA, seed=7)
GOOD = '{"question": "Why?"}'


def answer(text: str, finish: str = "stop") -> Response:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return JSONResponse(body)


def error(status: int, message: str, **headers: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status, headers=headers)


@dataclass
class ChatServer:
    """Plays the responses of `script` in turn, the last one again and again, and keeps what it was sent."""

    url: str = ""
    script: list[Callable[[], Response]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
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

    def plays(self, *responses: Callable[[], Response]) -> None:
        self.script = list(responses)

    def client(self, **options: Any) -> OpenAICompatibleModel:
        return OpenAICompatibleModel(
            **{"base_url": self.url, "model": "m", "api_key": KEY, "max_attempts": 3, **options}
        )


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    chat = ChatServer()
    app = Starlette(routes=[Route("/v1/chat/completions", chat.chat, methods=["POST"])])
    http = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    task = asyncio.create_task(http.serve())
    while not http.started:
        await asyncio.sleep(0.01)
    chat.url = f"http://127.0.0.1:{http.servers[0].sockets[0].getsockname()[1]}/v1"
    yield chat
    http.should_exit = http.force_exit = True
    await task


async def test_answer_is_parsed_and_the_schema_is_sent(server: ChatServer) -> None:
    server.plays(lambda: answer(GOOD))
    async with server.client() as model:
        completion = await model.complete(ASK)
    assert completion.parsed == {"question": "Why?"}
    assert (completion.prompt_tokens, completion.completion_tokens, completion.model) == (11, 3, "m")
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert server.bodies[0]["seed"] == 7
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_without_schema_the_text_is_free(server: ChatServer) -> None:
    server.plays(lambda: answer("hello"))
    async with server.client() as model:
        completion = await model.complete(ChatRequest(messages=ASK.messages))
    assert (completion.text, completion.parsed) == ("hello", None)
    assert "response_format" not in server.bodies[0]


async def test_no_key_means_no_key_from_the_environment(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.plays(lambda: answer(GOOD))
    async with server.client(api_key=None) as model:
        await model.complete(ASK)
    assert KEY not in str(server.headers[0])


async def test_429_waits_as_long_as_asked(server: ChatServer) -> None:
    server.plays(lambda: error(429, "slow down", **{"retry-after": "1"}), lambda: answer(GOOD))
    async with server.client() as model:
        began = asyncio.get_running_loop().time()
        await model.complete(ASK)
    assert 1.0 <= asyncio.get_running_loop().time() - began < 3.0
    assert len(server.bodies) == 2


async def test_a_retry_after_beyond_the_total_time_is_not_waited_for(server: ChatServer) -> None:
    server.plays(lambda: error(429, "come back tomorrow", **{"retry-after": "86400"}))
    async with server.client() as model:
        with pytest.raises(LLMRateLimited, match="come back tomorrow") as caught:
            await model.complete(ASK)
    assert caught.value.retry_after_seconds == 86400
    assert len(server.bodies) == 1


async def test_5xx_is_retried(server: ChatServer) -> None:
    server.plays(lambda: error(500, "boom"), lambda: error(503, "loading"), lambda: answer(GOOD))
    async with server.client() as model:
        assert (await model.complete(ASK)).parsed == {"question": "Why?"}


async def test_5xx_every_time_is_unavailable(server: ChatServer) -> None:
    server.plays(lambda: error(502, "bad gateway"))
    async with server.client(max_attempts=2) as model:
        with pytest.raises(LLMUnavailable, match="502: bad gateway"):
            await model.complete(ASK)
    assert len(server.bodies) == 2


async def test_hanging_server_is_unavailable_within_the_total_time(server: ChatServer) -> None:
    server.delay_seconds = 30
    server.plays(lambda: answer(GOOD))
    async with server.client(timeout_seconds=0.3, total_seconds=1.5, max_attempts=50) as model:
        async with asyncio.timeout(4):
            with pytest.raises(LLMUnavailable, match="did not answer within"):
                await model.complete(ASK)


async def test_nobody_listens(unused_tcp_port: int) -> None:
    model = OpenAICompatibleModel(base_url=f"http://127.0.0.1:{unused_tcp_port}/v1", model="m", max_attempts=2)
    async with model:
        with pytest.raises(LLMUnavailable, match="LLM_BASE_URL"):
            await model.complete(ASK)


@pytest.mark.parametrize("bad", ['{"question": "Why', "I cannot.", '{"question": "No mark"}', '{"other": 1}', "[]", ""])
async def test_a_bad_answer_is_asked_again_and_paid_for(server: ChatServer, bad: str) -> None:
    server.plays(lambda: answer(bad), lambda: answer(GOOD))
    async with server.client() as model:
        completion = await model.complete(ASK)
    assert completion.parsed == {"question": "Why?"}
    assert completion.prompt_tokens == 22
    assert server.bodies[1]["seed"] != server.bodies[0]["seed"]


async def test_a_truncated_answer_gets_more_room(server: ChatServer) -> None:
    server.plays(lambda: answer('{"question": "Wh', finish="length"), lambda: answer(GOOD))
    async with server.client() as model:
        await model.complete(ASK)
    assert server.bodies[1]["max_tokens"] == 2 * server.bodies[0]["max_tokens"]


async def test_never_valid(server: ChatServer) -> None:
    server.plays(lambda: answer('{"question": "No mark"}'))
    async with server.client() as model:
        with pytest.raises(LLMInvalidOutput, match="does not match the required pattern") as caught:
            await model.complete(ASK)
    assert (caught.value.prompt_tokens, caught.value.completion_tokens) == (33, 9)


async def test_server_without_structured_output_gets_the_schema_in_the_prompt(server: ChatServer) -> None:
    server.plays(
        lambda: error(400, "response_format json_schema is not supported"),
        lambda: answer(f"Sure!\n```json\n{GOOD}\n```"),
        lambda: answer(f"<think>{{maybe}}</think>{GOOD}"),
    )
    async with server.client(max_attempts=1) as model:
        assert (await model.complete(ASK)).parsed == {"question": "Why?"}
        assert (await model.complete(ASK)).parsed == {"question": "Why?"}
    assert [("response_format" in body) for body in server.bodies] == [True, False, False]
    assert json.dumps(SCHEMA) in server.bodies[1]["messages"][-1]["content"]


async def test_another_400_is_refused_in_the_servers_words(server: ChatServer) -> None:
    server.plays(lambda: error(400, "context length exceeded by 12 tokens"))
    async with server.client() as model:
        with pytest.raises(LLMRefused, match="exceeded by 12 tokens") as caught:
            await model.complete(ASK)
    assert caught.value.server_status == 400
    assert len(server.bodies) == 1


async def test_wrong_key_names_the_setting_and_never_shows_the_key(server: ChatServer) -> None:
    server.plays(lambda: error(401, f"Incorrect API key provided: {KEY}"))
    async with server.client() as model:
        with pytest.raises(LLMRefused, match="LLM_API_KEY") as caught:
            await model.complete(ASK)
    shown = f"{caught.value!r} {caught.value} {caught.value.__cause__} {model!r}"
    assert KEY not in shown
    assert "[key]" in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "message", ['model "m" not found, try pulling it first', "The model `m` does not exist.", "model_not_found"]
)
async def test_missing_model_says_how_to_get_it(server: ChatServer, message: str) -> None:
    server.plays(lambda: error(404, message))
    async with server.client() as model:
        with pytest.raises(LLMModelNotFound, match=r"ollama pull m.*LLM_MODEL"):
            await model.complete(ASK)


async def test_wrong_path_points_to_the_base_url(server: ChatServer) -> None:
    async with server.client(base_url=server.url.removesuffix("/v1")) as model:
        with pytest.raises(LLMRefused, match="LLM_BASE_URL; it usually ends with /v1"):
            await model.complete(ASK)


async def test_a_page_that_is_no_completion(server: ChatServer) -> None:
    server.plays(lambda: Response("<html>Hi</html>", media_type="text/html"))
    async with server.client(max_attempts=1) as model:
        with pytest.raises(LLMUnavailable, match="LLM_BASE_URL"):
            await model.complete(ASK)


async def test_concurrency_never_exceeds_its_bound(server: ChatServer) -> None:
    server.delay_seconds = 0.03
    server.plays(lambda: answer(GOOD))
    async with server.client(max_concurrency=3) as model:
        await asyncio.gather(*(model.complete(ASK) for _ in range(24)))
    assert server.most_running == 3


def test_openai_is_imported_only_when_used() -> None:
    code = "import sys, backend.providers.llm.openai_compatible; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
