"""A small server that speaks vLLM's API for adapters, as its documentation describes it; no model is behind it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class VllmImitation:
    """Knows one base, loads what it is told to when the files are there, and says which adapter was asked."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.adapters: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.registrations = 0
        self.fails_with: int | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                models = [{"id": outer.base, "object": "model", "root": outer.base, "parent": None}]
                models += [{"id": name, "object": "model", "parent": outer.base} for name in outer.adapters]
                self._send(200, {"object": "list", "data": models})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.fails_with is not None:
                    self._send(outer.fails_with, {"object": "error", "message": "It burns.", "code": outer.fails_with})
                elif self.path == "/v1/load_lora_adapter":
                    self._load(body)
                elif body["model"] not in outer.adapters:
                    self._send(404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}})
                else:
                    outer.asked.append(body)
                    self._stream(body)

            def _load(self, body: dict[str, Any]) -> None:
                outer.registrations += 1
                name, folder = body["lora_name"], Path(body["lora_path"])
                if name in outer.adapters:
                    self._send(400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}})
                elif not (folder / "adapter_model.safetensors").is_file():
                    self._send(404, {"error": {"message": f"No adapter found for {folder}"}})
                else:
                    outer.adapters[name] = str(folder)
                    self._write(200, "text/plain", f"Success: LoRA adapter '{name}' added successfully.".encode())

            def _stream(self, body: dict[str, Any]) -> None:
                pieces = ["It ", "is the ", "hall lamp."]
                chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"role": "assistant"}}]}]
                chunks += [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
                chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}]
                chunks += [{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}]
                text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
                self._write(200, "text/event-stream", text.encode())

            def _send(self, status: int, body: dict[str, Any]) -> None:
                self._write(status, "application/json", json.dumps(body).encode())

            def _write(self, status: int, kind: str, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
