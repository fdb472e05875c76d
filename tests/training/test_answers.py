"""Where an answer comes from: vLLM for the base that it serves, a provider, or the serving process."""

from collections.abc import Iterator
from typing import Any

import pytest

from backend.kit.config import Settings
from backend.training.models import FineTuning
from tests.conftest import Tenant
from tests.providers.vllm_server import VllmImitation
from tests.training.conftest import Hosted
from tests.training.serving import BASE, plant_model

ASKED = [{"role": "user", "content": "Which lamp is bright?"}]


@pytest.fixture
def vllm(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmImitation]:
    server = VllmImitation(BASE)
    monkeypatch.setattr(settings, "vllm_base_url", server.url)
    yield server
    server.stop()


async def chat(tenant: Tenant, run: FineTuning, **fields: Any) -> Any:
    body = {"model": f"ft-{run.public_id}", "messages": ASKED, **fields}
    return await tenant.client.post("/v1/chat/completions", json=body)


async def test_vllm_is_told_of_the_adapter_once_and_answers(app: Any, tenant: Tenant, vllm: VllmImitation) -> None:
    run = await plant_model(app, tenant)
    first = await chat(tenant, run, max_tokens=3, stop=["."], seed=4, temperature=0.5)
    assert first.status_code == 200, first.text
    assert first.json()["choices"][0]["message"]["content"] == "It is the hall lamp."
    assert first.json()["choices"][0]["finish_reason"] == "length"
    assert first.json()["usage"] == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    (name,) = vllm.adapters
    assert name.startswith(str(run.public_id))
    asked = vllm.asked[0]
    assert asked["messages"] == ASKED
    assert (asked["model"], asked["max_tokens"], asked["stop"], asked["seed"]) == (name, 3, ["."], 4)
    assert asked["temperature"] == 0.5
    streamed = await chat(tenant, run, stream=True)
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert vllm.registrations == 1
    # Started again, it has forgotten the adapter.
    vllm.adapters.clear()
    assert (await chat(tenant, run)).status_code == 200
    assert vllm.registrations == 2
    test = await tenant.client.post(f"/api/fine-tunings/{run.id}/test", json={"prompt": "Which lamp?"})
    assert test.json() == {"response": "It is the hall lamp."}


async def test_a_base_that_vllm_does_not_serve_is_left_to_the_serving_process(
    app: Any, tenant: Tenant, vllm: VllmImitation
) -> None:
    vllm.base = "another/base"
    run = await plant_model(app, tenant)
    answer = await chat(tenant, run)
    assert answer.json()["error"]["code"] == "serving_not_running"
    assert not vllm.asked


async def test_a_vllm_that_is_away_is_passed_over(
    app: Any, tenant: Tenant, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "vllm_base_url", "http://127.0.0.1:1/v1")
    run = await plant_model(app, tenant)
    assert (await chat(tenant, run)).json()["error"]["code"] == "serving_not_running"


@pytest.mark.parametrize(("status", "code", "ours"), [(400, "vllm_refused", 400), (500, "vllm_unavailable", 503)])
async def test_vllms_failures_keep_its_words(
    app: Any, tenant: Tenant, vllm: VllmImitation, status: int, code: str, ours: int
) -> None:
    run = await plant_model(app, tenant)
    vllm.fails_with = status
    answer = await chat(tenant, run)
    assert (answer.status_code, answer.json()["error"]["code"]) == (ours, code)
    assert "It burns" in answer.json()["error"]["message"]


async def test_vllm_is_not_asked_for_a_model_of_its_own(app: Any, tenant: Tenant, vllm: VllmImitation) -> None:
    """It takes adapters; who trained all weights is told which process answers."""
    run = await plant_model(app, tenant)
    async with app.state.services.db.transaction() as session:
        (await session.get_one(FineTuning, run.id)).method = "full"
    answer = await chat(tenant, run)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "serving_not_running")
    assert "trained all weights" in answer.json()["error"]["message"]
    assert not vllm.asked
    assert not vllm.registrations


async def test_a_model_of_another_is_never_named_to_vllm(
    app: Any, tenant: Tenant, vllm: VllmImitation, make_tenant: Any
) -> None:
    run = await plant_model(app, tenant)
    answer = await chat(await make_tenant(), run)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert not vllm.adapters


async def test_a_providers_model_answers_there(hosted: Hosted) -> None:
    await hosted.started()
    hosted.imitation.job.stage = "completed"
    await hosted.poll()
    hosted.imitation.models.add(hosted.imitation.result)
    number, tenant = hosted.ids[-1], hosted.tenant
    (listed,) = (await tenant.client.get("/v1/models")).json()["data"]
    assert listed["owned_by"] == hosted.name
    body = {"model": listed["id"], "messages": ASKED, "max_tokens": 20}
    whole = await tenant.client.post("/v1/chat/completions", json=body)
    assert whole.status_code == 200, whole.text
    answered = whole.json()["choices"][0]["message"]["content"]
    assert answered
    assert whole.json()["usage"]["completion_tokens"] > 0
    streamed = await tenant.client.post(f"/api/fine-tunings/{number}/test", json={"prompt": "Hi?", "stream": True})
    assert "event: complete" in streamed.text
    for name, value in (("top_p", 0.5), ("stop", ["x"]), ("seed", 1)):
        refused = await tenant.client.post("/v1/chat/completions", json={**body, name: value})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
