"""A server on loopback that speaks the Hub's HTTP protocol as far as models go, with faults on demand."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE_BYTES = 1000  # larger files are stored as LFS objects, with a SHA-256


@dataclass
class Repository:
    """A model on the server. `shown` False makes it like one that does not exist."""

    files: dict[str, bytes]
    revision: str = "a" * 40
    gated: bool = False
    license: str | None = "apache-2.0"
    num_parameters: int | None = None
    lies: dict[str, bytes] = field(default_factory=dict)  # content sent instead of what the listing says


class HubServer:
    """`requests` records (method, path, headers). `mode`: "up", "hang", "503", "drip", "garbage", "bad token".

    `failures_left`: requests answered 503 before `mode` counts; `cut_after`: bytes of a file, then the connection ends;
    `pace_seconds`: pause after each 64 KiB.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.mode = "up"
        self.failures_left = 0
        self.cut_after: int | None = None
        self.pace_seconds = 0.0
        self.token = "hf_secret"
        self.stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def add(self, model_id: str, files: dict[str, bytes], **settings: Any) -> Repository:
        self.repositories[model_id] = Repository(files, **settings)
        return self.repositories[model_id]

    def fetched(self) -> list[str]:
        """Names of the files that were asked for, in order."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if "/resolve/" in path and method == "GET"]

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if self.hub.mode == "hang":
            self.hub.stopping.wait(20)
            self.close_connection = True
            return
        if self.hub.mode == "503" or self.hub.failures_left:
            self.hub.failures_left = max(0, self.hub.failures_left - 1)
            self._send(503, b"upstream is down")
            return
        if self.hub.mode == "garbage":
            self._send(200, b"<html>Log in to the hotel's network</html>")
            return
        if self.hub.mode == "bad token":
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return
        if path.startswith("/api/models/"):
            self._send_info(path.removeprefix("/api/models/"))
        else:
            model_id, _, rest = path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._send_file(model_id, revision, name)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _send_info(self, rest: str) -> None:
        model_id, _, revision = rest.partition("/revision/")
        repository = self.hub.repositories.get(model_id)
        if repository is None:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
        elif revision and revision != repository.revision:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif self.hub.mode == "drip":
            self._drip(json.dumps(_describe(model_id, repository)).encode())
        else:
            self._send(200, json.dumps(_describe(model_id, repository)).encode(), {"Content-Type": "application/json"})

    def _send_file(self, model_id: str, revision: str, name: str) -> None:
        repository = self.hub.repositories.get(model_id)
        if repository is None:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
        elif repository.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            code = 403 if self.headers.get("Authorization") else 401
            self._refuse(code, "GatedRepo", "Access to this model is restricted.")
        elif revision != repository.revision:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif name not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._send_content(repository, name, repository.lies.get(name, repository.files[name]))

    def _send_content(self, repository: Repository, name: str, content: bytes) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"ETag": f'"{_sha1(content)}"', "X-Repo-Commit": repository.revision, "Accept-Ranges": "bytes"}
        if start >= len(content) > 0:
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        self.send_response(206 if start else 200)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for key, value in (headers | {"Content-Length": str(len(content) - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = content[start:]
        if self.hub.cut_after is not None and len(rest) > self.hub.cut_after:
            rest, self.close_connection = rest[: self.hub.cut_after], True
        with contextlib.suppress(ConnectionError):
            for offset in range(0, len(rest), 64 * 1024):
                self.wfile.write(rest[offset : offset + 64 * 1024])
                self.wfile.flush()
                time.sleep(self.hub.pace_seconds)

    def _drip(self, content: bytes) -> None:
        """A byte now and then: every read succeeds, the answer never ends."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for value in content:
                self.wfile.write(bytes([value]))
                self.wfile.flush()
                if self.hub.stopping.wait(0.1):
                    break
        self.close_connection = True

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ((headers or {}) | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)


def _describe(model_id: str, repository: Repository) -> dict[str, Any]:
    config = json.loads(repository.files.get("config.json", b"{}"))
    answer: dict[str, Any] = {
        "_id": "0",
        "id": model_id,
        "sha": repository.revision,
        "gated": "manual" if repository.gated else False,
        "private": False,
        "tags": [],
        "config": {key: config[key] for key in ("architectures", "model_type") if key in config},
        "siblings": [_sibling(name, content) for name, content in repository.files.items()],
    }
    if repository.license:
        answer["cardData"] = {"license": repository.license}
    if repository.num_parameters is not None:
        answer["safetensors"] = {
            "parameters": {"BF16": repository.num_parameters},
            "total": repository.num_parameters,
        }
    return answer


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    described: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _sha1(content)}
    if len(content) > LARGE_BYTES:
        digest = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return described


def _sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def running_hub() -> Iterator[HubServer]:
    hub = HubServer()
    try:
        yield hub
    finally:
        hub.stop()
