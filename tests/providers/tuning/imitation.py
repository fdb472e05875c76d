"""Providers of fine-tuning imitated over real HTTP, with a job whose stage the tests set, and faults on demand."""

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Fault = Literal["cut", "accepted then silent", "malformed"] | int
Stage = Literal["queued", "preparing", "training", "completed", "error", "cancelled", "strange"]
Reply = tuple[int, Any]
NOT_FOUND: Reply = (404, {"error": {"message": "No such thing"}})


@dataclass
class Job:
    id: str
    body: dict[str, Any]
    stage: Stage = "queued"
    step: int = 0
    words: str = ""


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    raw: bytes
    content_type: str

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.raw or b"{}")
        assert isinstance(found, dict)
        return found

    def form(self) -> tuple[str, bytes, dict[str, str]]:
        """File name, content and the other fields of a multipart form."""
        message = BytesParser().parsebytes(f"Content-Type: {self.content_type}\r\n\r\n".encode() + self.raw)
        name, content, fields = "", b"", {}
        for part in message.get_payload():
            payload = part.get_payload(decode=True)
            if part.get_filename():
                name, content = part.get_filename(), payload
            else:
                fields[part.get_param("name", header="content-disposition")] = payload.decode()
        return name, content, fields


@dataclass
class Imitation:
    """What all have in common. Subclasses say which operation a request is, and answer it."""

    total_steps: int = 10
    jobs: dict[str, Job] = field(default_factory=dict)
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    words: str = "Something about this request"
    seen: list[Request] = field(default_factory=list)
    result: str = "ft:result"

    def __post_init__(self) -> None:
        imitation = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                imitation.serve(self)

            do_GET = do_POST = do_PUT = do_DELETE = _serve

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def job(self) -> Job:
        assert len(self.jobs) == 1, f"{len(self.jobs)} jobs instead of one"
        return next(iter(self.jobs.values()))

    def put_file(self, name: str, content: bytes, prefix: str = "file-") -> str:
        identity = f"{prefix}{len(self.files) + 1}"
        self.files[identity] = (name, content)
        return identity

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        request = Request(
            handler.command,
            unquote(parts.path),
            parse_qs(parts.query),
            _read_body(handler),
            handler.headers.get("content-type", ""),
        )
        self.seen.append(request)
        operation, answer = self.route(request)
        self.served.append(operation)
        fault = self.faults.get(operation)
        if fault == "cut":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\nContent-Type: application/json\r\n\r\n{")
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        elif fault == "malformed":
            _send(handler, 200, b'{"id": "half')
        elif isinstance(fault, int):
            headers = {"Retry-After": "7"} if fault == 429 else {}
            _send(handler, fault, json.dumps(self.error_body(fault)).encode(), headers)
        else:
            status, body = answer()
            if fault == "accepted then silent":
                time.sleep(2.2)
            content_type = "application/json"
            if isinstance(body, Streamed):
                body, content_type = body.content, body.content_type
            elif not isinstance(body, bytes):
                body = json.dumps(body).encode()
            _send(handler, status, body, {}, content_type)

    def error_body(self, status: int) -> dict[str, Any]:
        return {"error": {"message": self.words, "type": "error", "code": None}}

    def route(self, request: Request) -> tuple[str, Callable[[], Reply]]:
        raise NotImplementedError

    def chat(self, request: Request) -> Reply:
        body = request.json
        if body["model"] not in self.models:
            return 404, {"error": {"message": f"The model {body['model']} does not exist"}}
        text = f"You said: {body['messages'][-1]['content']}"
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            head = {"id": "c-1", "object": "chat.completion", "created": 1, "model": body["model"]}
            return 200, head | {"choices": [choice]}
        events = [
            {
                "id": "c-1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
            }
            for word in text.split(" ")
        ]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        return 200, Streamed("".join(lines).encode(), "text/event-stream")


@dataclass
class Streamed:
    content: bytes
    content_type: str


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    if "chunked" not in handler.headers.get("transfer-encoding", "").lower():
        return handler.rfile.read(int(handler.headers.get("content-length") or 0))
    content = b""
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        content += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return content


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    content: bytes,
    headers: dict[str, str] | None = None,
    content_type: str = "application/json",
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)
