"""A finished export goes to a server that speaks the Hub's protocol for writing, as far as files and tokens go."""

import base64
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from backend.jobs.models import Job
from backend.kit.config import Settings
from backend.kit.db import Database
from backend.projects.models import Project
from backend.providers.hub_publishing import HubOutOfReach, HubRefusesPush, publish
from backend.training.models import Artifact, FineTuning
from tests.conftest import Tenant
from tests.training.conftest import plant_dataset

TOKEN = "hf_canaryCANARYcanaryCANARY12"


class WritableHub:
    """Keeps `repositories` by name, each with its files; `status` other than 200 refuses to make any."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.status = 200
        self.tokens: set[str | None] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    hub: WritableHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.tokens.add(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        if self.hub.status != 200:
            self._send({"error": f"You may not, with {TOKEN}"}, self.hub.status)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
            self.hub.repositories.setdefault(name, {})
            self.hub.private[name] = asked.get("private", asked.get("visibility") == "private")
            self._send({"url": f"{self.hub.url}/{name}", "name": name, "id": "1"})
        elif path == "/api/validate-yaml":
            self._send({"warnings": [], "errors": []})
        elif path.endswith("/preupload/main"):
            files = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for item in json.loads(body)["files"]
            ]
            self._send({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self._send({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        else:
            self._send({"error": f"not known here: {self.path}"}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == self.path.removeprefix("/lfs/")
        self.hub.objects[self.path.removeprefix("/lfs/")] = content
        self._send({})

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            self._send({"name": "me"})
        else:
            self._send({"error": f"not known here: {self.path}"}, 404)

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                self.hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                self.hub.repositories[name][value["path"]] = self.hub.objects[value["oid"]]
        self._send({"commitUrl": f"{self.hub.url}/{name}/commit/{'a' * 40}", "commitOid": "a" * 40, "success": True})

    def _send(self, value: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[WritableHub]:
    server = WritableHub()
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    (path / "README.md").write_text("# Card\n")
    (path / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 100)
    return path


async def started() -> None:
    """What happens meanwhile is not of interest."""


async def test_a_folder_arrives_whole(hub: WritableHub, folder: Path) -> None:
    url = await publish(hub.url, TOKEN, "me/lamps", folder, private=True, on_start=started)
    assert url == f"{hub.url}/me/lamps"
    assert hub.repositories == {"me/lamps": {path.name: path.read_bytes() for path in folder.iterdir()}}
    assert hub.private == {"me/lamps": True}
    assert hub.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_is_told_in_the_hubs_words_without_the_token(
    hub: WritableHub, folder: Path, status: int
) -> None:
    hub.status = status
    with pytest.raises(HubRefusesPush) as caught:
        await publish(hub.url, TOKEN, "me/lamps", folder, private=False, on_start=started)
    assert "You may not, with [token]" in caught.value.detail
    assert TOKEN not in caught.value.detail


async def test_a_hub_that_is_not_there_can_be_tried_again(hub: WritableHub, folder: Path) -> None:
    hub.stop()
    with pytest.raises(HubOutOfReach) as caught:
        await publish(hub.url, TOKEN, "me/lamps", folder, private=False, on_start=started)
    assert caught.value.retryable


async def test_the_job_pushes_the_export_with_the_kept_key_and_keeps_the_key_to_itself(
    app: Any,
    db: Database,
    tenant: Tenant,
    settings: Settings,
    hub: WritableHub,
    run_jobs: Callable[[str], Awaitable[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = await tenant.make_project(name="Lamps")
    await plant_export(app, db, project)
    path, body = f"/projects/{project}/export/push", {"repo_id": "me/lamps", "what": "merged"}
    answer = await tenant.client.post(path, json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (401, "PROVIDER_KEY_MISSING")

    monkeypatch.setattr(settings, "hf_endpoint", hub.url)
    kept = await tenant.client.post("/api/users/me/api-keys", json={"provider": "huggingface", "key": TOKEN})
    assert kept.status_code in (200, 201), kept.text
    assert TOKEN not in kept.text
    answer = await tenant.client.post(path, json={**body, "what": "gguf"})
    assert (answer.status_code, answer.json()["error_code"]) == (404, "EXPORT_NOT_FOUND")
    answer = await tenant.client.post(path, json=body)
    assert answer.status_code == 202, answer.text
    job = await run_jobs(answer.json()["job_id"])
    assert job["state"] == "success", job
    assert job["result"] == {"url": f"{hub.url}/me/lamps", "files": ["config.json", "model.safetensors"]}
    assert hub.repositories == {"me/lamps": {"config.json": b"{}", "model.safetensors": b"weights"}}
    assert hub.private["me/lamps"] is True
    async with db.transaction() as session:
        row = (await session.scalars(select(Job).where(Job.public_id == UUID(answer.json()["job_id"])))).one()
    assert TOKEN not in json.dumps([row.params, row.result, row.message])
    assert not list((settings.data_dir / "runs").glob(f"export-{row.public_id}"))


async def plant_export(app: Any, db: Database, project: str) -> None:
    """The rows and files of an export of a merged model."""
    dataset = await plant_dataset(db, project, train=2, evaluated=0)
    async with db.transaction() as session:
        row = (await session.scalars(select(Project).where(Project.public_id == UUID(project)))).one()
        run = FineTuning(
            project_id=row.id, dataset_id=dataset, name="Lamps", method="lora", model="m", status="completed"
        )
        session.add(run)
        await session.flush()
        for name, content in (("merged/config.json", b"{}"), ("merged/model.safetensors", b"weights")):
            key = f"projects/{project}/exports/{name}"
            await app.state.services.storage.put_bytes(key, content)
            session.add(
                Artifact(
                    fine_tuning_id=run.id,
                    role="export",
                    filename=name,
                    size_bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                    file_key=key,
                )
            )
