"""The OpenAI-compatible face, by OpenAI's own SDK over real HTTP, and what it refuses."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest
import uvicorn
from openai import AsyncOpenAI, OpenAI
from sqlalchemy import update

from backend.kit.db import Database
from backend.training.models import FineTuning
from backend.training.serving_host import ServingHost
from tests.conftest import Tenant, registered
from tests.training.serving import plant_model, serving_host, until

ASKED: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which lamp is bright?"}]


@pytest.fixture(scope="module")
async def address(app: Any) -> AsyncIterator[str]:
    """Where the application listens, on a real socket; its lifespan has begun already."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", loop="none"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(20):
            while not server.started:
                await asyncio.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await running


@pytest.fixture(scope="module")
async def host(app: Any) -> AsyncIterator[ServingHost]:
    async with serving_host(app) as found:
        yield found


@pytest.fixture(scope="module")
async def owner(app: Any, anonymous: Any) -> AsyncIterator[Tenant]:
    async with registered(app, anonymous) as tenant:
        yield tenant


@pytest.fixture(scope="module")
async def model(app: Any, owner: Tenant, host: ServingHost) -> FineTuning:
    return await plant_model(app, owner, seed=1)


@pytest.fixture(scope="module")
async def key(owner: Tenant) -> str:
    """A personal access token, as a program has it."""
    return str((await owner.client.post("/api/users/me/tokens", json={"name": "program"})).json()["token"])


@pytest.fixture
async def client(address: str, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=120) as made:
        yield made


async def test_a_whole_answer_by_both_clients(client: AsyncOpenAI, address: str, key: str, model: FineTuning) -> None:
    name = f"ft-{model.public_id}"
    answer = await client.chat.completions.create(model=name, messages=ASKED, max_tokens=12, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == name
    choice = answer.choices[0]
    assert (choice.index, choice.message.role) == (0, "assistant")
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def ask() -> str | None:
        with OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=120) as sync:
            made = sync.chat.completions.create(
                model=str(model.public_id), messages=ASKED, max_completion_tokens=12, temperature=0
            )
            return made.choices[0].message.content

    assert await asyncio.to_thread(ask) == choice.message.content


async def test_a_streamed_answer_says_the_same(client: AsyncOpenAI, model: FineTuning) -> None:
    name = f"ft-{model.public_id}"
    common: Any = {"model": name, "messages": ASKED, "max_tokens": 12, "temperature": 0}
    whole = await client.chat.completions.create(**common)
    chunks = [chunk async for chunk in await client.chat.completions.create(**common, stream=True)]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)
    counted = [
        chunk
        async for chunk in await client.chat.completions.create(
            **common, stream=True, stream_options={"include_usage": True}
        )
    ]
    assert counted[-1].choices == []
    assert counted[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in counted[:-1])
    raw = await client.post("/chat/completions", body={**common, "stream": True}, cast_to=httpx.Response)
    assert raw.text.endswith("data: [DONE]\n\n")


async def test_the_length_the_stop_and_the_seed(client: AsyncOpenAI, model: FineTuning) -> None:
    common: Any = {"model": str(model.public_id), "messages": ASKED}
    short = await client.chat.completions.create(**common, max_tokens=2, temperature=0)
    assert short.choices[0].finish_reason == "length"
    text = (await client.chat.completions.create(**common, max_tokens=12, temperature=0)).choices[0].message.content
    assert text
    stop = text[3]
    stopped = await client.chat.completions.create(**common, max_tokens=12, temperature=0, stop=stop)
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    drawn = [
        (await client.chat.completions.create(**common, max_tokens=12, seed=seed)).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


async def test_the_list_of_models(
    client: AsyncOpenAI, app: Any, owner: Tenant, model: FineTuning, tenant: Tenant, db: Database
) -> None:
    foreign = await plant_model(app, tenant)
    unfinished = await plant_model(app, owner)
    async with db.transaction() as session:
        await session.execute(update(FineTuning).where(FineTuning.id == unfinished.id).values(status="training"))
    listed = [item async for item in client.models.list()]
    assert [(item.id, item.object, item.owned_by) for item in listed] == [(f"ft-{model.public_id}", "model", "local")]
    assert (await client.models.retrieve(f"ft-{model.public_id}")).id == f"ft-{model.public_id}"
    for absent in (foreign, uuid4(), "gpt-4o"):
        name = f"ft-{absent.public_id}" if isinstance(absent, FineTuning) else str(absent)
        for call in (
            lambda name=name: client.models.retrieve(name),
            lambda name=name: client.chat.completions.create(model=name, messages=ASKED),
            lambda name=name: client.chat.completions.create(model=name, messages=ASKED, stream=True),
        ):
            with pytest.raises(openai.NotFoundError) as raised:
                await call()
            assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
            assert raised.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as early:
        await client.chat.completions.create(model=f"ft-{unfinished.public_id}", messages=ASKED)
    assert early.value.code == "fine_tuning_not_finished"


@pytest.mark.parametrize(
    "extra",
    [
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"functions": [{"name": "f"}]},
        {"response_format": {"type": "json_object"}},
        {"presence_penalty": 0.5},
        {"logit_bias": {"1": 5}},
        {"audio": {"voice": "alloy"}},
        {"something_new": 1},
    ],
)
async def test_what_would_be_left_out_is_refused_by_name(
    client: AsyncOpenAI, model: FineTuning, extra: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model=str(model.public_id), messages=ASKED, extra_body=extra)
    (name,) = extra
    assert (raised.value.code, raised.value.param) == ("parameter_unsupported", name)
    assert name in raised.value.message


async def test_what_asks_for_nothing_is_taken(client: AsyncOpenAI, model: FineTuning) -> None:
    answer = await client.chat.completions.create(
        model=str(model.public_id),
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Which lamp?"},
            {"role": "assistant", "content": "The red one."},
            {"role": "user", "content": "Why?"},
        ],
        max_tokens=3,
        n=1,
        logprobs=False,
        presence_penalty=0,
        user="somebody",
        response_format={"type": "text"},
        tools=[],
        temperature=None,
    )
    assert answer.choices[0].finish_reason in ("stop", "length")


async def test_bodies_that_are_not_valid_name_the_field(client: AsyncOpenAI, model: FineTuning) -> None:
    name = str(model.public_id)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("temperature", {"messages": ASKED, "temperature": 3}),
        ("top_p", {"messages": ASKED, "top_p": 0}),
        ("max_tokens", {"messages": ASKED, "max_tokens": 0}),
        ("messages", {"messages": []}),
        ("messages.0.role", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}),
    ]
    for field, fields in cases:
        with pytest.raises(openai.UnprocessableEntityError) as raised:
            await client.chat.completions.create(model=name, **fields)
        assert raised.value.param == field
        assert raised.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        await client.chat.completions.create(model=name, messages=[{"role": "user", "content": "lamp " * 700}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as streamed:
        await client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "lamp " * 700}], stream=True
        )
    assert streamed.value.code == "context_length_exceeded"


async def test_keys_that_are_none(address: str, model: FineTuning) -> None:
    for wrong in ("nonsense", "ftf_pat_nonsense"):
        async with AsyncOpenAI(base_url=f"{address}/v1", api_key=wrong, max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as raised:
                await client.models.list()
            assert raised.value.code == "invalid_api_key"
            assert raised.value.type == "authentication_error"


async def test_errors_are_french_for_who_reads_french(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await client.models.retrieve("ft-x", extra_headers={"Accept-Language": "fr"})
    assert "n'existe pas" in raised.value.message


async def test_only_this_face_speaks_openais_errors(owner: Tenant) -> None:
    assert set((await owner.client.get("/api/fine-tunings/999999999")).json()) == {"detail", "error_code", "context"}
    assert set((await owner.client.get("/v1/nowhere")).json()) == {"error"}


async def test_a_client_that_hangs_up_stops_the_model(
    app: Any, address: str, key: str, model: FineTuning, host: ServingHost
) -> None:
    body = {"model": str(model.public_id), "messages": ASKED, "max_tokens": 400, "temperature": 2, "seed": 5}
    headers = {"Authorization": f"Bearer {key}"}

    async def is_idle() -> bool:
        return not host._answering and host.child.idle_seconds > 0

    for stream in (True, False):
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60) as client:
            if stream:
                async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
                    async with aclosing(answer.aiter_lines()) as lines:
                        assert json.loads((await anext(lines)).removeprefix("data: "))["choices"]
            else:
                with pytest.raises(httpx.ReadTimeout):
                    await client.post("/v1/chat/completions", json=body, timeout=0.3)
        await until(is_idle, seconds=15)
        assert await app.state.services.redis.zcard("serving:live") == 0


async def test_without_a_serving_process_it_says_what_to_start(
    app: Any, owner: Tenant, model: FineTuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backend.training import serving

    async def nobody(*_: Any, **__: Any) -> str:
        return "nobody"

    monkeypatch.setattr(serving.ServingQueue, "admit", nobody)
    answer = await owner.client.post("/v1/chat/completions", json={"model": str(model.public_id), "messages": ASKED})
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "server_error"
    assert "finetuneflow serve" in answer.json()["error"]["message"]


def test_the_face_counts_like_any_other_post(address: str) -> None:
    from backend.api.rate_limit import RateLimits
    from backend.kit.config import get_settings

    limits: Callable[..., Any] = RateLimits(app=None, settings=get_settings()).rule_for  # type: ignore[arg-type]
    assert limits("POST", "/v1/chat/completions").kind == "post"
    assert limits("GET", "/v1/models").kind == "get"
