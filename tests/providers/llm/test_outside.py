"""Anthropic's and Mistral's clients against imitations that others wrote, and against the vendors' own shapes."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from pydantic import TypeAdapter, ValidationError

from backend.datasets.strategies.base import ChunkText, TaskType
from backend.datasets.strategies.free import FreeStrategy
from backend.datasets.strategies.judge import scores_schema
from backend.providers.llm.advice import of_account
from backend.providers.llm.anthropic import AnthropicModel, message_arguments
from backend.providers.llm.base import ChatMessage, ChatRequest, LLMError, LLMRateLimited
from backend.providers.llm.mistral import MistralModel
from tests.datasets.lamps import sentences
from tests.providers.llm.conftest import ASK, GOOD, KEY, ChatServer
from tests.providers.tuning.outside import node_server, spec

AIMOCK = "@copilotkit/aimock/dist/cli.js"
PRISM = "@stoplight/prism-cli/dist/index.js"
SHAPE: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)


def claude(url: str, **options: Any) -> AnthropicModel:
    advice = of_account("anthropic", own_key=True)
    return AnthropicModel(base_url=url, model="claude-sonnet-5", api_key=KEY, advice=advice, **options)


@pytest.fixture(scope="module")
def aimock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    fixtures = tmp_path_factory.mktemp("aimock") / "fixtures.json"
    busy = {"error": {"message": "Number of requests has exceeded your limit", "type": "rate_limit_error"}}
    usage = {"usage": {"input_tokens": 11, "output_tokens": 3}}
    rows = [
        {"match": {"userMessage": "busy"}, "response": {**busy, "status": 429}},
        {"match": {"userMessage": "Answer again"}, "response": {"content": GOOD, **usage}},
        {"match": {"userMessage": "Ask badly"}, "response": {"content": '{"question": "No mark"}', **usage}},
        {"match": {"userMessage": "Ask something"}, "response": {"content": GOOD, **usage}},
    ]
    fixtures.write_text(json.dumps({"fixtures": rows}))
    arguments = ("-p", "{port}", "-h", "127.0.0.1", "-f", str(fixtures), "--log-level", "silent")
    with node_server(AIMOCK, *arguments, ready="/__aimock/health") as url:
        yield url


async def test_anthropic_answers_and_corrects_itself(aimock: str) -> None:
    badly = ChatRequest(messages=(ChatMessage("user", "Ask badly."),), schema=ASK.schema)
    async with claude(aimock, max_attempts=2) as model:
        good = await model.complete(ASK)
        corrected = await model.complete(badly)
        with pytest.raises(LLMRateLimited, match="exceeded your limit"):
            await model.complete(ChatRequest(messages=(ChatMessage("user", "busy"),)))
    assert good.parsed == corrected.parsed == {"question": "Why?"}
    assert good.model == "anthropic/claude-sonnet-5"
    assert (good.prompt_tokens, good.completion_tokens) == (11, 3)
    assert (corrected.prompt_tokens, corrected.completion_tokens) == (22, 6), "both tries are counted"
    journal = httpx.get(f"{aimock}/__aimock/journal").json()
    entries = journal if isinstance(journal, list) else journal["entries"]
    assert {str(entry["path"]).split("?")[0] for entry in entries} == {"/v1/messages"}
    assert len(entries) == 5


@pytest.mark.parametrize("schema", [None, ASK.schema, scores_schema(3)], ids=["text", "question", "scores"])
def test_anthropic_arguments_have_the_shape_of_its_sdk(schema: Any) -> None:
    turns = (*ASK.messages, ChatMessage("assistant", "What?"), ChatMessage("user", "Again."))
    arguments = message_arguments("claude-sonnet-5", ChatRequest(messages=turns, schema=schema, seed=7))
    assert list(SHAPE.validate_python(arguments)["messages"]), "they are checked as they are read"
    assert arguments.keys() <= MessageCreateParamsNonStreaming.__annotations__.keys() | {
        *("model", "max_tokens", "messages", "system", "output_config")
    }
    assert arguments["system"] == "Be short."
    assert [turn["role"] for turn in arguments["messages"]] == ["user", "assistant", "user"]
    with pytest.raises(ValidationError):  # the check can fail
        list(SHAPE.validate_python({**arguments, "messages": [{"role": "judge", "content": 1}]})["messages"])


def test_anthropic_gets_no_keyword_of_a_schema_that_it_refuses() -> None:
    sent = message_arguments("m", ChatRequest(messages=ASK.messages, schema=scores_schema(3)))
    schema = sent["output_config"]["format"]["schema"]
    scores = schema["properties"]["scores"]
    assert not {"maxItems", "minimum", "maximum"} & (scores.keys() | scores["items"]["properties"]["number"].keys())
    assert "maxItems: 3" in scores["description"], "the model is told all the same"


@pytest.mark.parametrize("task", TaskType)
def test_anthropic_takes_the_schema_of_every_task(task: TaskType) -> None:
    chunk = ChunkText(text=" ".join(sentences(1) + sentences(2)), task_type=task, labels=("wet", "dry"))
    asks = FreeStrategy().plan(chunk, 2).asks
    assert asks
    for ask in asks:
        assert ask.request.schema is not None
        sent = message_arguments("m", ask.request)["output_config"]["format"]["schema"]
        assert sent["properties"].keys() == ask.request.schema["properties"].keys()
        assert not set(re.findall(r'"(\w+)":', json.dumps(sent))) & {"maxItems", "minLength", "maxLength", "pattern"}


@pytest.mark.parametrize("server", ["anthropic"], indirect=True)
async def test_anthropic_gets_neither_temperature_nor_seed(server: ChatServer) -> None:
    server.answers(GOOD)
    async with server.client() as model:
        await model.complete(ASK)
    assert server.bodies[0].keys() == {"model", "max_tokens", "messages", "system", "output_config"}


@pytest.mark.parametrize("server", ["anthropic"], indirect=True)
async def test_anthropic_refusal_is_not_asked_again(server: ChatServer) -> None:
    server.plays(lambda: server.dialect.answer("", finish="content_filter"))
    async with server.client() as model:
        with pytest.raises(LLMError, match="declines"):
            await model.complete(ASK)
    assert len(server.bodies) == 1


async def test_mistral_requests_meet_its_description() -> None:
    """Prism checks each request against the description, and answers with any body that fits it."""
    description = spec("mistral.openapi.yaml")
    arguments = ("mock", "-h", "127.0.0.1", "-p", "{port}", "--ignoreExamples", str(description))
    with node_server(PRISM, *arguments) as url:
        advice = of_account("mistral", own_key=True)
        options: dict[str, Any] = {"model": "mistral-small-latest", "api_key": KEY, "advice": advice}
        async with MistralModel(base_url=url, max_attempts=1, **options) as model:
            answer = await model.complete(ChatRequest(messages=ASK.messages, seed=7))
            assert answer.model == "mistral/mistral-small-latest"
            # Its own invention does not meet our schema; what matters is that the request was taken.
            with pytest.raises(LLMError, match="gave no valid answer"):
                await model.complete(ASK)
            with pytest.raises(LLMError, match=r"status 4\d\d"):
                await model.complete(ChatRequest(messages=ASK.messages, temperature=9.0))


@pytest.mark.parametrize("server", ["mistral"], indirect=True)
async def test_mistral_request_and_the_parts_of_a_thinking_answer(server: ChatServer) -> None:
    def thinking() -> Any:
        parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": GOOD}]
        return server.dialect.answer(parts)  # type: ignore[arg-type]

    server.plays(thinking)
    async with server.client() as model:
        assert (await model.complete(ASK)).text == GOOD
    body = server.bodies[0]
    assert (body["random_seed"], body["temperature"], body["max_tokens"]) == (7, 0.0, 512)
    assert body["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": ASK.schema}
