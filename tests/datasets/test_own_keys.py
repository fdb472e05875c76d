"""Datasets that a provider's model writes and judges with the user's own key, and where that key never turns up."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import text

from backend.kit.config import Settings
from backend.kit.db import Database
from tests.conftest import Tenant
from tests.datasets.lamps import RunJobs, examples, make_project, start
from tests.llm_server import LLMServer, _free

ANTHROPIC_KEY = "sk-ant-CanaryCanaryCanary32"
OPENAI_KEY = "sk-CanaryCanaryOpenAI32"
MISTRAL_KEY = "CanaryCanaryMistral32chars000000"


class Provider(ThreadingHTTPServer):
    """Anthropic's Messages API and OpenAI's chat API: what each key asked, in turn; keys in `refused` get 401."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[tuple[str, str, str]] = []
        self.refused: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Provider
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, {"data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Authorization"].removeprefix("Bearer ")
        self.server.asked.append((self.path, body["model"], key))
        if key in self.server.refused:
            self._send(401, {"error": {"type": "authentication_error", "message": f"invalid x-api-key {key}"}})
            return
        is_anthropic = self.path.endswith("/messages")
        schema = body.get("output_config", {}).get("format") or body.get("response_format", {}).get("json_schema")
        answer = json.dumps(_answer(body, schema["schema"]["properties"])) if schema else "Hello from the base model."
        self._send(200, _anthropic(answer) if is_anthropic else _openai(answer))

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _send(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _answer(body: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    prompt = body["messages"][-1]["content"]
    if "scores" in properties:
        shown = prompt.split("<examples>")[1].split("</examples>")[0].strip().splitlines()
        score = {"reason": "Good.", "faithfulness": 5, "usefulness": 5}
        return {"scores": [{"number": number, **score} for number in range(1, len(shown) + 1)]}
    item = properties["examples"]["items"]
    classes = {name: field["enum"][0] for name, field in item["properties"].items() if "enum" in field}
    return {"examples": [{**classes, **example} for example in _free(prompt, 1, False)]}


def _anthropic(answer: str) -> dict[str, Any]:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
    usage = {"input_tokens": 100, "output_tokens": 20}
    return {**head, "content": [{"type": "text", "text": answer}], "stop_reason": "end_turn", "usage": usage}


def _openai(answer: str) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


@pytest.fixture
def provider(app: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    from celery_app import runtime

    server = Provider()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    for found in {id(one): one for one in (app.state.services.settings, runtime.get().settings, settings)}.values():
        monkeypatch.setattr(found, "anthropic_base_url", server.url)
        monkeypatch.setattr(found, "mistral_base_url", server.url)
        monkeypatch.setattr(found, "openai_base_url", f"{server.url}/v1")
        monkeypatch.setattr(found, "together_base_url", f"{server.url}/v1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


async def keep_key(tenant: Tenant, provider: str, key: str) -> None:
    answer = await tenant.client.post("/api/users/me/api-keys", json={"provider": provider, "key": key})
    assert answer.status_code in (200, 201), answer.text


async def database_text(db: Database) -> str:
    """Every row of every table, as text."""
    async with db.transaction() as session:
        names = (await session.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))).all()
        tables = [await session.scalar(text(f'SELECT string_agg(t::text, chr(10)) FROM "{name}" t')) for name in names]
    return "\n".join(table or "" for table in tables)


async def test_a_providers_model_writes_and_another_judges(
    tenant: Tenant, run_jobs: RunJobs, provider: Provider, llm_server: LLMServer, db: Database, capfd: Any
) -> None:
    llm_server.requests.clear()
    await keep_key(tenant, "anthropic", ANTHROPIC_KEY)
    await keep_key(tenant, "openai", OPENAI_KEY)
    project = await make_project(tenant, run_jobs)
    wanted = {"ollama_model": "anthropic/claude-x", "judge": True, "judge_model": "openai/gpt-x"}
    job = await run_jobs(await start(tenant, project, num_examples_target=3, **wanted))
    assert job["state"] == "success", job["error_message"]
    assert {call for call in provider.asked if call[0].endswith("/messages")} == {
        ("/v1/messages", "claude-x", ANTHROPIC_KEY)
    }
    assert {call for call in provider.asked if "chat" in call[0]} == {("/v1/chat/completions", "gpt-x", OPENAI_KEY)}
    assert llm_server.requests == [], "the model of the service was not asked"
    made = await examples(tenant, project)
    assert {example["metadata"]["judge"]["judged_by"] for example in made} == {"openai/gpt-x"}
    report = (await tenant.client.get(f"/projects/{project}/dataset/stats")).json()["report"]
    assert report["generation"]["model"] == "anthropic/claude-x"
    everything = await database_text(db)
    assert "anthropic/claude-x" in everything
    captured = capfd.readouterr()
    for key in (ANTHROPIC_KEY, OPENAI_KEY):
        assert key not in everything
        assert key not in captured.out + captured.err


async def test_a_refused_key_ends_the_job_in_the_providers_words(
    tenant: Tenant, run_jobs: RunJobs, provider: Provider, db: Database, caplog: Any
) -> None:
    await keep_key(tenant, "anthropic", ANTHROPIC_KEY)
    provider.refused.add(ANTHROPIC_KEY)
    project = await make_project(tenant, run_jobs)
    job_id = await start(tenant, project, ollama_model="anthropic/claude-x", num_examples_target=3)
    job = await run_jobs(job_id)
    assert (job["state"], job["error_code"]) == ("failed", "LLM_REFUSED")
    assert job["error_message"].startswith("Anthropic refused with status 401: invalid x-api-key [key]. Replace")
    assert ANTHROPIC_KEY not in caplog.text
    assert ANTHROPIC_KEY not in await database_text(db)
    french = (await tenant.client.get(f"/jobs/{job_id}", headers={"Accept-Language": "fr"})).text
    assert ANTHROPIC_KEY not in french


@pytest.mark.parametrize("body", [{}, {"judge": True, "judge_model": "anthropic/claude-x", "ollama_model": None}])
async def test_without_a_key_nothing_starts(
    tenant: Tenant, make_tenant: Any, run_jobs: RunJobs, provider: Provider, body: dict[str, Any]
) -> None:
    """Another tenant's key is as good as none."""
    await keep_key(await make_tenant(), "anthropic", ANTHROPIC_KEY)
    project = await make_project(tenant, run_jobs)
    wanted = {"ollama_model": "anthropic/claude-x", **body}
    answer = await tenant.client.post(f"/projects/{project}/dataset/generate", json=wanted)
    assert (answer.status_code, answer.json()["error_code"]) == (401, "PROVIDER_KEY_MISSING"), answer.text
    if not body:
        answer = await tenant.client.post(f"/projects/{project}/dataset/preview", json=wanted)
        assert (answer.status_code, answer.json()["error_code"]) == (401, "PROVIDER_KEY_MISSING")
        platform = (await tenant.client.get("/api/projects")).json()[0]["id"]
        contents = (await tenant.client.get("/api/contents", params={"project_id": platform})).json()
        made = {"project_id": platform, "name": "n", "model": "m", "content_ids": [contents[0]["id"]]}
        answer = await tenant.client.post("/api/datasets", json={**made, "writer": "anthropic/claude-x"})
        assert (answer.status_code, answer.json()["error_code"]) == (401, "PROVIDER_KEY_MISSING"), answer.text
        assert (await tenant.client.get("/api/datasets")).json() == []
    assert provider.asked == []


async def test_a_key_that_is_deleted_before_the_job_runs(tenant: Tenant, run_jobs: RunJobs, provider: Provider) -> None:
    await keep_key(tenant, "anthropic", ANTHROPIC_KEY)
    project = await make_project(tenant, run_jobs)
    job = await start(tenant, project, ollama_model="anthropic/claude-x", num_examples_target=3)
    assert (await tenant.client.delete("/api/users/me/api-keys/anthropic")).status_code in (200, 204)
    row = await run_jobs(job)
    assert (row["state"], row["error_code"]) == ("failed", "PROVIDER_KEY_MISSING")
    assert provider.asked == []


async def test_the_service_can_have_a_provider_of_its_own(
    tenant: Tenant, run_jobs: RunJobs, provider: Provider, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydantic import SecretStr

    from celery_app import runtime

    for found in (app.state.services.settings, runtime.get().settings):
        monkeypatch.setattr(found, "llm_base_url", "")
        monkeypatch.setattr(found, "llm_model", "anthropic/claude-service")
        monkeypatch.setattr(found, "llm_api_key", SecretStr("KeyOfTheService"))
    await keep_key(tenant, "anthropic", ANTHROPIC_KEY)
    project = await make_project(tenant, run_jobs)
    job = await run_jobs(await start(tenant, project, num_examples_target=3))
    assert job["state"] == "success", job["error_message"]
    assert {call[1:] for call in provider.asked} == {("claude-service", "KeyOfTheService")}


@pytest.mark.parametrize(
    ("name", "key", "path"),
    [
        ("anthropic", ANTHROPIC_KEY, "/v1/messages"),
        ("mistral", MISTRAL_KEY, "/v1/chat/completions"),
        ("openai", OPENAI_KEY, "/v1/chat/completions"),
    ],
)
async def test_a_base_model_is_asked_with_the_own_key(
    tenant: Tenant, make_tenant: Any, provider: Provider, name: str, key: str, path: str
) -> None:
    await keep_key(tenant, name, key)
    body = {"provider": name, "model": "m", "prompt": "Hello?", "system_prompt": "Be short."}
    answer = await tenant.client.post("/api/models/ask", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"response": "Hello from the base model.", "prompt_tokens": 100, "completion_tokens": 20}
    assert provider.asked == [(path, "m", key)]
    stranger = await make_tenant()
    refused = await stranger.client.post("/api/models/ask", json=body)
    assert (refused.status_code, refused.json()["error_code"]) == (401, "PROVIDER_KEY_MISSING")
    provider.refused.add(key)
    wrong = await tenant.client.post("/api/models/ask", json=body, headers={"Accept-Language": "fr"})
    assert (wrong.status_code, wrong.json()["error_code"]) == (502, "LLM_REFUSED")
    assert key not in wrong.text
    assert wrong.json()["detail"].startswith(f"{name} refuse la clé")
    assert len(provider.asked) == 2


async def test_bad_questions(tenant: Tenant, provider: Provider) -> None:
    good = {"provider": "openai", "model": "m", "prompt": "Hello?"}
    for change, status, code in (
        ({"provider": "bedrock"}, 400, "UNKNOWN_PROVIDER"),
        ({"provider": "nobody"}, 400, "UNKNOWN_PROVIDER"),
        ({"prompt": " "}, 422, "VALIDATION_ERROR"),
        ({"max_tokens": 0}, 422, "VALIDATION_ERROR"),
        ({"model": ""}, 422, "VALIDATION_ERROR"),
    ):
        answer = await tenant.client.post("/api/models/ask", json={**good, **change})
        assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text
    assert provider.asked == []
