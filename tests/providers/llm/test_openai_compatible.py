"""What only the OpenAI-compatible client does: its advice, and what servers of this kind refuse by name."""

import asyncio

import pytest

from backend.providers.llm.advice import of_account
from backend.providers.llm.base import ChatRequest, LLMInvalidOutput, LLMModelNotFound, LLMRefused, LLMUnavailable
from backend.providers.llm.openai_compatible import OpenAICompatibleModel
from tests.providers.llm.conftest import ASK, GOOD, KEY, ChatServer


async def test_the_request(server: ChatServer) -> None:
    server.answers('{"question": "Wrong"}', GOOD)
    async with server.client() as model:
        await model.complete(ASK)
    first, second = server.bodies
    assert (first["temperature"], first["seed"], first["max_tokens"]) == (0.0, 7, 512)
    assert first["messages"][0] == {"role": "system", "content": "Be short."}
    assert second["seed"] != first["seed"], "the next try samples differently"
    assert second["temperature"] > first["temperature"]


async def test_what_a_model_that_reasons_does_not_take_is_left_out(server: ChatServer) -> None:
    """OpenAI's own sentences. None of the four requests at once fails for what another one has found out."""
    server.delay_seconds = 0.05
    seen: set[str] = set()

    def judge_request() -> object:
        body = server.bodies[len(seen_bodies)]
        seen_bodies.append(body)
        if "max_tokens" in body:
            text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            return server.dialect.error(400, text)
        if "temperature" in body:
            seen.add("temperature")
            text = "Unsupported value: 'temperature' does not support 0.0 with this model. Only 1 is supported."
            return server.dialect.error(400, text)
        return server.dialect.answer(GOOD)

    seen_bodies: list[dict[str, object]] = []
    server.plays(judge_request)  # type: ignore[arg-type]
    async with server.client(max_attempts=1) as model:
        await asyncio.gather(*(model.complete(ASK) for _ in range(4)))
        assert seen == {"temperature"}
        before = len(server.bodies)
        await model.complete(ASK)
    assert len(server.bodies) == before + 1
    assert "temperature" not in server.bodies[-1]
    assert server.bodies[-1]["max_completion_tokens"] == 512
    assert server.bodies[-1]["seed"] == 7


async def test_a_value_that_is_refused_is_not_left_out(server: ChatServer) -> None:
    server.plays(lambda: server.dialect.error(400, "max_tokens is too large: 512. This model supports at most 100."))
    async with server.client() as model:
        with pytest.raises(LLMRefused, match="too large"):
            await model.complete(ASK)
    assert len(server.bodies) == 1


async def test_an_answer_that_is_declined_is_not_asked_again(server: ChatServer) -> None:
    server.plays(lambda: server.dialect.answer("", finish="content_filter"))
    async with server.client() as model:
        with pytest.raises(LLMInvalidOutput, match=r"its only try .the model declines"):
            await model.complete(ASK)
        with pytest.raises(LLMInvalidOutput, match="declines"):
            await model.complete(ChatRequest(messages=ASK.messages))
    assert len(server.bodies) == 2


async def test_wrong_key_names_the_setting(server: ChatServer) -> None:
    server.plays(lambda: server.dialect.error(401, "Incorrect API key provided"))
    async with server.client() as model:
        with pytest.raises(LLMRefused, match="Set LLM_API_KEY to a valid key"):
            await model.complete(ASK)


async def test_the_users_own_key_is_replaced_by_its_owner(server: ChatServer) -> None:
    server.plays(lambda: server.dialect.error(401, "Incorrect API key provided"))
    advice = of_account("together", own_key=True)
    model = OpenAICompatibleModel(
        base_url=server.url, model="org/m", api_key=KEY, advice=advice, prefix="together/", max_attempts=1
    )
    async with model:
        assert model.model == "together/org/m"
        with pytest.raises(LLMRefused, match=r"^Together refused .*POST /api/users/me/api-keys$") as caught:
            await model.complete(ASK)
    assert caught.value.context == {"server_status": 401, "provider": "together"}
    assert "LLM_" not in str(caught.value)
    assert server.bodies[0]["model"] == "org/m"


@pytest.mark.parametrize("message", ['model "m" not found, try pulling it first', "The model `m` does not exist."])
async def test_missing_model_says_how_to_get_it(server: ChatServer, message: str) -> None:
    server.plays(lambda: server.dialect.error(404, message))
    async with server.client() as model:
        with pytest.raises(LLMModelNotFound, match=r"ollama pull m.*LLM_MODEL"):
            await model.complete(ASK)


async def test_wrong_path_points_to_the_base_url(server: ChatServer) -> None:
    async with server.client(base_url=server.url.removesuffix("/v1")) as model:
        with pytest.raises(LLMRefused, match="LLM_BASE_URL; it usually ends with /v1"):
            await model.complete(ASK)


async def test_nobody_listens(server: ChatServer, unused_tcp_port: int) -> None:
    async with server.client(base_url=f"http://127.0.0.1:{unused_tcp_port}/v1", max_attempts=1) as model:
        with pytest.raises(LLMUnavailable, match="Start it, or change LLM_BASE_URL"):
            await model.complete(ASK)
