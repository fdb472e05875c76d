"""Stripe's API as far as a checkout needs it, imitated on loopback."""

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs


class StripeServer:
    """`sessions`: the checkout sessions by id; `down` makes every answer a 503."""

    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, dict[str, Any]] = {}
        self.down = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stripe": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def answer(self, method: str, path: str, form: dict[str, str], key: str) -> tuple[int, dict[str, Any]]:
        if self.down:
            return 503, {"error": {"type": "api_error", "message": "Stripe is down."}}
        if key in self.by_key:
            return 200, self.by_key[key]
        if path == "/v1/customers":
            made: dict[str, Any] = {"id": f"cus_{secrets.token_hex(8)}", "object": "customer"}
        elif path == "/v1/checkout/sessions":
            made = {"id": f"cs_test_{secrets.token_hex(8)}", "object": "checkout.session", "status": "open"}
            made |= {"url": f"https://checkout.stripe.com/pay/{made['id']}", "form": form}
            self.sessions[made["id"]] = made
        else:
            session = self.sessions[path.split("/")[4]]
            if path.endswith("/expire"):
                if session["status"] != "open":
                    return 400, {"error": {"type": "invalid_request_error", "message": "Only open sessions expire."}}
                session["status"] = "expired"
            return 200, session
        self.by_key[key] = made
        return 200, made


class _Handler(BaseHTTPRequestHandler):
    stripe: StripeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self._handle("POST", self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())

    def do_GET(self) -> None:
        self._handle("GET", "")

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _handle(self, method: str, body: str) -> None:
        form = {name: values[0] for name, values in parse_qs(body).items()}
        status, answer = self.stripe.answer(method, self.path, form, self.headers.get("Idempotency-Key") or self.path)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
