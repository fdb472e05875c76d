"""An outside language model server, imitated on loopback: it obeys a request's JSON schema, or misbehaves."""

import json
import re
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LLMServer:
    """`mode`: "good", "down" (503), "garbage" (prose), "nul" (good, with characters that no database takes)."""

    def __init__(self) -> None:
        self.mode = "good"
        self.delay_seconds = 0.0
        self.requests: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"llm": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _Handler(BaseHTTPRequestHandler):
    llm: LLMServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.llm.requests.append(body)
        time.sleep(self.llm.delay_seconds)
        if self.llm.mode == "down":
            self._send(503, {"error": {"message": "the model is loading"}})
            return
        text = (
            "I would rather talk about the weather." if self.llm.mode == "garbage" else json.dumps(self._answer(body))
        )
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        self._send(200, {**head, "choices": [choice], "usage": usage})

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        properties = body["response_format"]["json_schema"]["schema"]["properties"]
        if "better" in properties:
            return {"better": "A"}  # a judge who only looks at the place
        if "examples" in properties:
            prompt = body["messages"][-1]["content"]
            made = _free(prompt, properties["examples"]["maxItems"], self.llm.mode == "nul")
            return {"examples": [_classed(example, properties["examples"]["items"]) for example in made]}
        return {"answer": properties["answer"]["enum"][0], "question": _by_pattern(properties["question"]["pattern"])}

    def _send(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the asker was killed meanwhile
            self.wfile.write(content)


def _free(prompt: str, most: int, unstorable: bool) -> list[dict[str, str]]:
    """Each sentence of the passage as its own answer and quote."""
    passage = prompt.split("<document>")[1].split("</document>")[0]
    sentences = re.findall(r"[A-Z][^.!?\n]{20,200}[.!?]", passage) or [passage.strip()[:200]]
    dirt = "\0\ud800" if unstorable else ""
    return [
        {
            "quote": sentence,
            "instruction": f"As fact number {number}, what is known about {' '.join(sentence.split()[:4])}?{dirt}",
            "input": dirt,
            "output": f"{sentence}{dirt}",
        }
        for number, sentence in enumerate(sentences[:most], 1)
    ]


def _classed(example: dict[str, str], item: dict[str, Any]) -> dict[str, str]:
    """The example with the first allowed value for every class that it lacks."""
    classes = {name: field["enum"][0] for name, field in item["properties"].items() if "enum" in field}
    return {**classes, **example}


def _by_pattern(pattern: str) -> str:
    """The opening, the first auxiliary, and all the words that are offered, in their order."""
    found = re.fullmatch(r"\^(.*?) \(([^()]*)\)\( \((.*)\)\)\{1,\d+\}\\\?\$", pattern)
    assert found is not None, pattern
    opening, auxiliaries, words = found.groups()
    text = f"{opening} {auxiliaries.split('|')[0]} {' '.join(words.split('|'))}?"
    return re.sub(r"\\(.)", r"\1", text)
