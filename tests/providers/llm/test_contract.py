"""What holds for every client of a language model, against a server that behaves as outside servers do."""

import asyncio
import json
import logging
import subprocess
import sys
import traceback
from contextlib import suppress
from typing import Any

import pytest
from starlette.responses import Response

from backend.providers.llm.base import (
    ChatRequest,
    LLMError,
    LLMInvalidOutput,
    LLMModelNotFound,
    LLMRateLimited,
    LLMRefused,
    LLMUnavailable,
)
from tests.providers.llm.conftest import ASK, DIALECTS, GOOD, KEY, SCHEMA, ChatServer

pytestmark = pytest.mark.parametrize("server", DIALECTS, indirect=True)


def shown(error: BaseException) -> str:
    """Everything that a log could show of an error, its variables and its causes included."""
    found, seen = repr(error), error
    while True:
        trace = traceback.TracebackException.from_exception(seen, capture_locals=True)
        found += "".join(trace.format()) + repr(getattr(seen, "context", ""))
        cause = seen.__cause__ or seen.__context__
        if cause is None:
            return found
        seen = cause


async def test_answer_is_parsed_and_the_schema_is_sent(server: ChatServer) -> None:
    server.answers(GOOD)
    async with server.client() as model:
        completion = await model.complete(ASK)
        assert completion.model == model.model
    assert completion.parsed == {"question": "Why?"}
    assert (completion.prompt_tokens, completion.completion_tokens) == (11, 3)
    sent = server.dialect.schema_in(server.bodies[0])
    assert (sent["required"], sent["additionalProperties"]) == (["question"], False)
    assert server.bodies[0]["model"] == "m"
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_without_schema_the_text_is_free(server: ChatServer) -> None:
    server.answers("hello")
    async with server.client() as model:
        completion = await model.complete(ChatRequest(messages=ASK.messages))
    assert (completion.text, completion.parsed) == ("hello", None)
    assert server.dialect.schema_in(server.bodies[0]) is None


async def test_it_can_be_used_again_after_its_end(server: ChatServer) -> None:
    server.answers(GOOD)
    model = server.client()
    for _ in range(2):
        async with model:
            assert (await model.complete(ASK)).text == GOOD


async def test_no_key_means_no_key_from_the_environment(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "MISTRAL_API_KEY", "OPENAI_ORG_ID"):
        monkeypatch.setenv(name, "KeyOfTheEnvironment")
    server.answers(GOOD)
    async with server.client(api_key="") as model:
        await model.complete(ASK)
    assert "KeyOfTheEnvironment" not in str(server.headers)


async def test_429_waits_as_long_as_asked(server: ChatServer) -> None:
    server.plays(
        lambda: server.dialect.error(429, "slow down", **{"retry-after": "1"}), lambda: server.dialect.answer(GOOD)
    )
    async with server.client() as model:
        began = asyncio.get_running_loop().time()
        await model.complete(ASK)
    assert 1.0 <= asyncio.get_running_loop().time() - began < 3.0
    assert len(server.bodies) == 2


async def test_a_retry_after_beyond_the_total_time_is_not_waited_for(server: ChatServer) -> None:
    server.plays(lambda: server.dialect.error(429, "come back tomorrow", **{"retry-after": "86400"}))
    async with server.client() as model:
        with pytest.raises(LLMRateLimited, match="come back tomorrow") as caught:
            await model.complete(ASK)
    assert caught.value.retry_after_seconds == 86400
    assert len(server.bodies) == 1


async def test_5xx_is_retried(server: ChatServer) -> None:
    server.plays(
        lambda: server.dialect.error(500, "boom"),
        lambda: server.dialect.error(529, "overloaded", **{"retry-after": "0"}),
        lambda: server.dialect.answer(GOOD),
    )
    async with server.client() as model:
        assert (await model.complete(ASK)).parsed == {"question": "Why?"}


async def test_5xx_every_time_is_unavailable(server: ChatServer) -> None:
    server.plays(lambda: server.dialect.error(502, "bad gateway"))
    async with server.client(max_attempts=2) as model:
        with pytest.raises(LLMUnavailable, match="502: bad gateway"):
            await model.complete(ASK)
    assert len(server.bodies) == 2


async def test_hanging_server_is_unavailable_within_the_total_time(server: ChatServer) -> None:
    server.delay_seconds = 30
    server.answers(GOOD)
    async with server.client(timeout_seconds=0.3, total_seconds=1.5, max_attempts=50) as model:
        async with asyncio.timeout(4):
            with pytest.raises(LLMUnavailable, match="did not answer within"):
                await model.complete(ASK)


async def test_nobody_listens(server: ChatServer, unused_tcp_port: int) -> None:
    async with server.client(base_url=f"http://127.0.0.1:{unused_tcp_port}", max_attempts=2) as model:
        with pytest.raises(LLMUnavailable, match="Cannot reach"):
            await model.complete(ASK)


@pytest.mark.parametrize("bad", ['{"question": "Why', "I cannot.", '{"question": "No mark"}', '{"other": 1}', "[]", ""])
async def test_a_bad_answer_is_asked_again_and_paid_for(server: ChatServer, bad: str) -> None:
    server.answers(bad, GOOD)
    async with server.client() as model:
        completion = await model.complete(ASK)
    assert completion.parsed == {"question": "Why?"}
    assert completion.prompt_tokens == 22
    if bad:  # the model sees its fault
        assert [turn["content"] for turn in server.bodies[1]["messages"]][-2] == bad


async def test_a_truncated_answer_gets_more_room(server: ChatServer) -> None:
    server.plays(
        lambda: server.dialect.answer('{"question": "Wh', finish="length"), lambda: server.dialect.answer(GOOD)
    )
    async with server.client() as model:
        await model.complete(ASK)
    assert server.bodies[1]["max_tokens"] == 2 * server.bodies[0]["max_tokens"]


async def test_never_valid(server: ChatServer) -> None:
    server.answers('{"question": "No mark"}')
    async with server.client() as model:
        with pytest.raises(LLMInvalidOutput, match="does not match the required pattern") as caught:
            await model.complete(ASK)
    assert (caught.value.prompt_tokens, caught.value.completion_tokens) == (33, 9)


async def test_without_structured_output_the_schema_is_in_the_prompt(server: ChatServer) -> None:
    name = "output_config" if server.dialect.name == "anthropic" else "response_format"
    server.plays(
        lambda: server.dialect.error(400, f"{name} json_schema is not supported"),
        lambda: server.dialect.answer(f"Sure!\n```json\n{GOOD}\n```"),
        lambda: server.dialect.answer(f"<think>{{maybe}}</think>{GOOD}"),
    )
    async with server.client(max_attempts=1) as model:
        assert (await model.complete(ASK)).parsed == {"question": "Why?"}
        assert (await model.complete(ASK)).parsed == {"question": "Why?"}
    assert [server.dialect.schema_in(body) is not None for body in server.bodies] == [True, False, False]
    assert json.dumps(SCHEMA) in server.bodies[1]["messages"][-1]["content"]


async def test_another_400_is_refused_in_the_servers_words(server: ChatServer) -> None:
    server.plays(lambda: server.dialect.error(400, "context length exceeded by 12 tokens"))
    async with server.client() as model:
        with pytest.raises(LLMRefused, match="exceeded by 12 tokens") as caught:
            await model.complete(ASK)
    assert caught.value.server_status == 400
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "message", ['model "m" not found, try pulling it first', "model_not_found", "Invalid model: m"]
)
async def test_a_missing_model(server: ChatServer, message: str) -> None:
    server.plays(lambda: server.dialect.error(404, message))
    async with server.client() as model:
        with pytest.raises(LLMModelNotFound, match="has no model 'm'"):
            await model.complete(ASK)


@pytest.mark.parametrize("status", [401, 403, 429, 500])
async def test_no_error_and_no_log_holds_the_key(
    server: ChatServer,
    status: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MISTRAL_DEBUG", "1")  # with it, the SDK writes its headers
    caplog.set_level(logging.DEBUG)
    server.plays(lambda: server.dialect.error(status, f"Incorrect API key provided: {KEY}. See {KEY[:4]}***"))
    async with server.client(max_attempts=2) as model:
        with pytest.raises(LLMError) as caught:
            await model.complete(ASK)
        assert KEY not in repr(model)
    assert "[key]" in str(caught.value)
    assert KEY not in shown(caught.value)
    assert "Traceback" in shown(caught.value), "the check sees what there is"
    assert KEY not in caplog.text
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err
    assert any(KEY in str(headers) for headers in server.headers)


@pytest.mark.parametrize(
    "body",
    [
        Response("<html>Hi</html>", media_type="text/html"),
        Response("{}", media_type="application/json"),
        Response('{"choices": [', media_type="application/json"),
        Response('{"choices": [], "content": "x"}', media_type="application/json"),
        Response("[1]", media_type="application/json"),
        Response("", media_type="application/json"),
    ],
    ids=["page", "empty object", "broken JSON", "no choice", "array", "nothing"],
)
async def test_an_answer_that_is_no_completion(server: ChatServer, body: Any) -> None:
    server.plays(lambda: body)
    async with server.client(max_attempts=1) as model:
        with pytest.raises(LLMUnavailable, match="something else than a chat completion"):
            await model.complete(ASK)


@pytest.mark.parametrize("status", [303, 307])
async def test_a_redirect_to_another_host_never_gets_the_key(server: ChatServer, status: int) -> None:
    port = server.url.split(":")[2].split("/")[0]
    there = {"location": f"http://localhost:{port}/elsewhere"}
    server.plays(lambda: Response(status_code=status, headers=there))
    async with server.client(max_attempts=1) as model:
        with suppress(LLMError):
            await model.complete(ASK)
    assert len(server.bodies) == 1
    assert KEY not in str(server.strays)


async def test_concurrency_never_exceeds_its_bound(server: ChatServer) -> None:
    server.delay_seconds = 0.03
    server.answers(GOOD)
    async with server.client(max_concurrency=3) as model:
        await asyncio.gather(*(model.complete(ASK) for _ in range(24)))
    assert server.most_running == 3


def test_the_client_is_imported_only_when_used(server: ChatServer) -> None:
    package = {"mistral": "mistralai"}.get(server.dialect.name, server.dialect.name)
    code = f"import sys, backend.providers.llm.choice; sys.exit('{package}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
