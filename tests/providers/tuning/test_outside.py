"""Adapters against imitations that others wrote, and what they send against the vendors' own descriptions."""

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from backend.providers.llm.base import ChatMessage
from backend.providers.tuning.base import ProviderAnswerBroken, ProviderRefused
from backend.providers.tuning.bedrock import BedrockTuning
from backend.providers.tuning.mistral import MistralTuning
from backend.providers.tuning.openai import OpenAITuning
from tests.providers.tuning.conftest import BEDROCK_KEY, SECRET, make_job
from tests.providers.tuning.outside import node_server, spec
from tests.providers.tuning.rest_imitations import OpenAIImitation

AIMOCK = "@copilotkit/aimock/dist/cli.js"
PRISM = "@stoplight/prism-cli/dist/index.js"
QUESTION = [ChatMessage("user", "hello")]


@pytest.fixture(scope="module")
def aimock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    fixtures = tmp_path_factory.mktemp("aimock") / "fixtures.json"
    answer = {"match": {"userMessage": "hello"}, "response": {"content": "Hello from the tuned model."}}
    fixtures.write_text(json.dumps({"fixtures": [answer]}))
    with node_server(
        AIMOCK,
        "-p",
        "{port}",
        "-h",
        "127.0.0.1",
        "-f",
        str(fixtures),
        "--log-level",
        "silent",
        ready="/__aimock/health",
    ) as url:
        yield url


@pytest.fixture(scope="module")
def openai_schema() -> Any:
    """Validates a body against a component of OpenAI's own description."""
    description = json.loads(spec("openai.openapi.json").read_text(), object_hook=_modern)
    registry: Any = Registry().with_resource("urn:openai", Resource(contents=description, specification=DRAFT202012))

    def problems(name: str, body: Any) -> list[str]:
        schema = {"$ref": f"urn:openai#/components/schemas/{name}"}
        return [error.message for error in Draft202012Validator(schema, registry=registry).iter_errors(body)]

    return problems


def _modern(schema: dict[str, Any]) -> dict[str, Any]:
    """It says `exclusiveMinimum: true` beside the minimum, as older drafts of JSON Schema did."""
    if schema.get("exclusiveMinimum") is True:
        schema["exclusiveMinimum"] = schema.pop("minimum")
    return schema


async def test_openai_from_file_to_answer(aimock: str, openai_schema: Any, tmp_path: Path) -> None:
    provider = OpenAITuning(SECRET, f"{aimock}/v1")
    hyperparameters = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 1.8}
    job = make_job("openai", tmp_path, hyperparameters=hyperparameters, seed=7)
    sent = await provider.submit(job)
    statuses = []
    for _ in range(20):
        progress = await provider.poll(sent.external_id, sent.state)
        statuses.append(progress.status)
        if progress.ended:
            break
    assert statuses[-1] == "completed", statuses
    assert progress.result_model
    assert progress.result_model.startswith("ft:gpt-4.1-mini")
    found = await provider.find(job.our_id)
    assert found is not None
    assert found.external_id == sent.external_id
    assert await provider.find(uuid.uuid4()) is None
    assert await provider.answer(progress.result_model, QUESTION) == "Hello from the tuned model."
    pieces = [piece async for piece in provider.stream(progress.result_model, QUESTION)]
    assert "".join(pieces) == "Hello from the tuned model."
    await provider.aclose()

    journal = httpx.get(f"{aimock}/__aimock/journal").json()
    entries = journal if isinstance(journal, list) else journal["entries"]
    bodies = [entry.get("body") for entry in entries if str(entry.get("path", "")).endswith("/chat/completions")]
    assert bodies
    for body in bodies:
        known = {name: value for name, value in body.items() if not name.startswith("_")}
        assert not openai_schema("CreateChatCompletionRequest", known)


async def test_openai_bodies_meet_its_description(openai_schema: Any, tmp_path: Path) -> None:
    imitation = OpenAIImitation()
    provider = OpenAITuning(SECRET, f"{imitation.url}/v1")
    hyperparameters = {"n_epochs": 50, "batch_size": 256, "learning_rate_multiplier": 0.1}
    await provider.submit(make_job("openai", tmp_path, hyperparameters=hyperparameters, suffix="x" * 80, seed=7))
    await provider.aclose()
    imitation.stop()
    body = imitation.job.body
    assert not openai_schema("CreateFineTuningJobRequest", body)
    assert openai_schema("CreateFineTuningJobRequest", {**body, "suffix": "x" * 80}), "the check can fail"


@pytest.fixture(scope="module")
def prism() -> Iterator[str]:
    description = spec("mistral.openapi.yaml")
    with node_server(
        PRISM, "mock", "-h", "127.0.0.1", "-p", "{port}", "--ignoreExamples", "--errors", str(description)
    ) as url:
        yield url


async def test_mistral_requests_meet_its_description(prism: str, tmp_path: Path) -> None:
    """Prism checks each request against the description, and answers with any body that fits it."""
    provider = MistralTuning(SECRET, prism)
    hyperparameters = {"training_steps": 10, "learning_rate": 1e-4}
    job = make_job("mistral", tmp_path, hyperparameters=hyperparameters)
    created = await provider.submit(job)
    assert created.external_id
    with suppress(ProviderAnswerBroken):  # a success without a model is a fitting body as well
        await provider.poll(created.external_id, created.state)
    await provider.cancel(created.external_id)
    await provider.find(job.our_id)
    await provider.forget(created.external_id, {"files": [str(uuid.uuid4())]})
    with pytest.raises(ProviderRefused) as caught:
        wrong = make_job("mistral", tmp_path, hyperparameters={"learning_rate": 5})
        await provider.submit(wrong)
    assert caught.value.provider_status in (400, 422)
    await provider.aclose()


@pytest.fixture
def moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    httpx.post(f"http://{host}:{port}/moto-api/reset")
    server.stop()


async def test_bedrock_from_bucket_to_stop(moto: str, tmp_path: Path) -> None:
    provider = BedrockTuning(BEDROCK_KEY, moto)
    await provider._in_thread(lambda: provider._client("s3").create_bucket(Bucket="bucket"))
    job = make_job("bedrock", tmp_path)
    assert await provider.find(job.our_id) is None
    sent = await provider.submit(job)
    stored = await provider._in_thread(
        lambda: provider._client("s3").get_object(Bucket="bucket", Key=sent.state["files"][0])["Body"].read()
    )
    assert stored == job.training_file.read_bytes()
    found = await provider.find(job.our_id)
    assert found is not None
    assert found.external_id == sent.external_id
    progress = await provider.poll(sent.external_id, sent.state)
    assert progress.status in ("preparing", "training")
    with pytest.raises(ProviderRefused):
        await provider.submit(job)
    await provider.cancel(sent.external_id)
    assert (await provider.poll(sent.external_id, sent.state)).status == "cancelled"
    await provider.forget(sent.external_id, sent.state)
    listed = await provider._in_thread(lambda: provider._client("s3").list_objects_v2(Bucket="bucket"))
    assert listed["KeyCount"] == 0
    await provider.aclose()


async def test_bedrock_without_its_bucket(moto: str, tmp_path: Path) -> None:
    provider = BedrockTuning(BEDROCK_KEY, moto)
    with pytest.raises(ProviderRefused) as caught:
        await provider.submit(make_job("bedrock", tmp_path))
    assert caught.value.provider_status == 404
    await provider.aclose()
