"""`POST /api/fine-tunings/{id}/test` while a serving process is alive: warm, streamed, and told apart from failures."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from sqlalchemy import update

from backend.kit.config import Settings
from backend.kit.db import Database
from backend.training.models import FineTuning
from backend.training.serving_host import ServingHost
from tests.conftest import Tenant, registered
from tests.contracts.shapes import matches
from tests.training.serving import plant_model, serving_host


@pytest.fixture(scope="module")
async def host(app: Any) -> AsyncIterator[ServingHost]:
    async with serving_host(app) as found:
        yield found


@pytest.fixture(scope="module")
async def asked(app: Any, anonymous: Any, host: ServingHost) -> AsyncIterator[tuple[Tenant, FineTuning]]:
    async with registered(app, anonymous) as tenant:
        yield tenant, await plant_model(app, tenant, seed=2)


@pytest.fixture(autouse=True)
def patient(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question loads torch, which may take long on a busy machine."""
    monkeypatch.setattr(settings, "playground_timeout_seconds", 120.0)


def events_of(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))))
    return found


async def test_the_contracts_example(asked: tuple[Tenant, FineTuning]) -> None:
    tenant, run = asked
    path = f"/api/fine-tunings/{run.id}/test"
    body = {"prompt": "Quelle est la procédure pour allumer la lampe ?", "max_tokens": 12}
    answer = await tenant.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    matches(answer.json(), {"response": str})
    assert float(answer.headers["X-First-Token-Ms"]) > 0
    assert (await tenant.client.post(path, json=body)).json() == answer.json()
    assert (await tenant.client.post(path, json={**body, "system_prompt": "Be brief."})).json() != answer.json()


async def test_a_launchs_system_prompt_is_there_unless_told_otherwise(
    asked: tuple[Tenant, FineTuning], db: Database
) -> None:
    tenant, run = asked
    path = f"/api/fine-tunings/{run.id}/test"
    body = {"prompt": "Which lamp is bright?", "max_tokens": 12}
    alone = (await tenant.client.post(path, json=body)).json()
    brief = (await tenant.client.post(path, json={**body, "system_prompt": "Be brief."})).json()
    assert alone != brief
    of_run = update(FineTuning).where(FineTuning.id == run.id)
    async with db.transaction() as session:
        await session.execute(of_run.values(system_prompt="Be brief."))
    try:
        assert (await tenant.client.post(path, json=body)).json() == brief
        assert (await tenant.client.post(path, json={**body, "system_prompt": ""})).json() == alone
        assert (await tenant.client.get(f"/api/fine-tunings/{run.id}")).json()["system_prompt"] == "Be brief."
    finally:
        async with db.transaction() as session:
            await session.execute(of_run.values(system_prompt=None))


async def test_streamed_it_says_the_same(asked: tuple[Tenant, FineTuning]) -> None:
    tenant, run = asked
    path = f"/api/fine-tunings/{run.id}/test"
    body = {"prompt": "Which lamp is bright?", "max_tokens": 12}
    whole = (await tenant.client.post(path, json=body)).json()["response"]
    for extra, headers in (({"stream": True}, {}), ({}, {"Accept": "text/event-stream"})):
        answer = await tenant.client.post(path, json={**body, **extra}, headers=headers)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer.text)
        assert [name for name, _ in events] == ["token"] * (len(events) - 1) + ["complete"]
        assert len(events) > 2
        assert "".join(data["text"] for _, data in events[:-1]).strip() == whole
        matches(
            events[-1][1],
            {
                "response": whole,
                "finish_reason": str,
                "usage": {"prompt_tokens": int, "completion_tokens": int},
                "latency": {"first_token_ms": float, "tokens_per_second": float},
            },
        )


async def test_what_fails_before_the_first_token_is_an_ordinary_error(asked: tuple[Tenant, FineTuning]) -> None:
    tenant, run = asked
    path = f"/api/fine-tunings/{run.id}/test"
    for extra in ({}, {"stream": True}):
        answer = await tenant.client.post(path, json={"prompt": "lamp " * 700, **extra})
        assert (answer.status_code, answer.json()["error_code"]) == (400, "PROMPT_TOO_LONG"), answer.text


async def test_a_models_owner_alone_may_ask(asked: tuple[Tenant, FineTuning], make_tenant: Any) -> None:
    _, run = asked
    other = (await make_tenant()).client
    for extra in ({}, {"stream": True}):
        answer = await other.post(f"/api/fine-tunings/{run.id}/test", json={"prompt": "Which lamp?", **extra})
        assert (answer.status_code, answer.json()["error_code"]) == (404, "FINE_TUNING_NOT_FOUND")
