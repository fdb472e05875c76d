"""The demo's view of the service: its event streams, its errors, its limits."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from backend.demo.client import JobFailed, Service, parse_events
from backend.demo.errors import DemoFailed

Reply = Callable[[BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes]]


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Service]]:
    """A client of an HTTP server that answers as told: for what the real service does only in trouble."""
    servers = []

    def start(reply: Reply) -> Service:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = reply(self)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        service = Service(f"http://127.0.0.1:{server.server_port}")
        servers.append((server, thread, service))
        return service

    yield start
    for server, thread, service in servers:
        service.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_events_are_read_as_they_are_sent() -> None:
    lines = [
        "retry: 2000", "", ": heartbeat", "",
        "id: 1-0", "event: log", 'data: {"step": 1}', "",
        "id: 2-0", "event: progress", "data: no json", "",
        "id: 3-0", "event: complete", 'data: {"status": "success"}', "",
    ]  # fmt: skip
    assert list(parse_events(iter(lines))) == [
        ("1-0", "log", {"step": 1}),
        ("3-0", "complete", {"status": "success"}),
    ]


def test_a_refusal_is_the_sentence_of_the_service(serve: Callable[[Reply], Service]) -> None:
    service = serve(lambda _: (400, {}, b'{"detail": "Set LLM_BASE_URL.", "error_code": "X"}'))
    with pytest.raises(DemoFailed, match=r"^Set LLM_BASE_URL\.$"):
        service.call("GET", "/projects")


def test_an_answer_that_is_no_json_is_told_by_its_status(serve: Callable[[Reply], Service]) -> None:
    service = serve(lambda _: (502, {}, b"<html>"))
    with pytest.raises(DemoFailed, match="answered 502 to /projects"):
        service.call("GET", "/projects")


def test_asked_too_often_it_waits_as_told(serve: Callable[[Reply], Service]) -> None:
    seen: list[str] = []

    def reply(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        seen.append(request.path)
        return (429, {"Retry-After": "0.5"}, b"{}") if len(seen) == 1 else (200, {}, b'{"ok": true}')

    assert serve(reply).call("GET", "/projects") == {"ok": True}
    assert len(seen) == 2


def test_a_download_asked_too_often_waits_as_told(serve: Callable[[Reply], Service], tmp_path: Path) -> None:
    seen: list[str] = []

    def reply(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        seen.append(request.path)
        return (429, {"Retry-After": "0.5"}, b"{}") if len(seen) == 1 else (200, {}, b"the whole file")

    serve(reply).download("/zip", tmp_path / "a.zip", lambda done, total: None)
    assert (tmp_path / "a.zip").read_bytes() == b"the whole file"
    assert len(seen) == 2


def test_a_stream_asked_too_often_is_not_asked_again_before_its_time(serve: Callable[[Reply], Service]) -> None:
    asked: list[float] = []
    jobs = iter(["running", "success"])

    def reply(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        if request.path == "/jobs/1":
            return 200, {}, json.dumps({"status": next(jobs), "progress_pct": 50, "message": ""}).encode()
        asked.append(time.monotonic())
        return 429, {"Retry-After": "3"}, b"{}"

    assert serve(reply).follow("1", "/jobs/1/events", lambda name, data: None)["status"] == "success"
    assert asked[1] - asked[0] >= 3


def test_nothing_listens() -> None:
    service = Service("http://127.0.0.1:9")
    with pytest.raises(DemoFailed, match="does not answer"):
        service.call("GET", "/health")
    service.close()


def test_a_broken_stream_is_taken_up_where_it_stopped(serve: Callable[[Reply], Service]) -> None:
    resumed: list[str | None] = []
    job: dict[str, Any] = {"status": "running", "progress_pct": 50, "message": "half"}

    def reply(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        if request.path == "/jobs/1":
            body = json.dumps(job).encode()
            job.update(status="failed", error_message="Out of memory. Use a smaller model.", error_code="OOM")
            return 200, {}, body
        resumed.append(request.headers.get("Last-Event-ID"))
        return 200, {}, b'id: 7-0\nevent: log\ndata: {"step": %d}\n\n' % len(resumed)

    service, heard = serve(reply), []
    with pytest.raises(JobFailed, match="Out of memory") as failure:
        service.follow("1", "/jobs/1/events", lambda name, data: heard.append((name, data)))
    assert failure.value.code == "OOM"
    assert resumed == [None, "7-0"]
    assert [data for name, data in heard if name == "log"] == [{"step": 1}, {"step": 2}]
    assert service.running is None


def test_a_download_that_breaks_off_leaves_no_file(serve: Callable[[Reply], Service], tmp_path: Path) -> None:
    service = serve(lambda _: (200, {"Content-Length": "1000"}, b"too little"))
    with pytest.raises(DemoFailed, match="broke off"):
        service.download("/zip", tmp_path / "a.zip", lambda done, total: None)
    assert list(tmp_path.iterdir()) == []
