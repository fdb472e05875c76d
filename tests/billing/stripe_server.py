"""A server on loopback that keeps what it is told as Stripe does: customers, sessions, refunds, events; with faults."""

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit


class StripeServer:
    """`requests` records (method, path, parameters, headers). `mode`: "up", "down" (503), "cut", "refuse" (400).

    An Idempotency-Key is kept with its parameters and its answer, as Stripe does.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], dict[str, str]]] = []
        self.mode = "up"
        # Answers are lost on their way: the work is done, and nobody hears of it.
        self.deaf = 0
        self.events: list[dict[str, Any]] = []
        self.intents: list[dict[str, Any]] = []
        self.invoices: list[dict[str, Any]] = []
        self.kept: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stripe": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def told(self, path: str) -> list[dict[str, str]]:
        """The parameters of every POST to a path."""
        return [params for method, asked, params, _ in self.requests if (method, asked) == ("POST", path)]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def make(self, path: str, params: dict[str, str]) -> dict[str, Any]:
        name = secrets.token_hex(8)
        if path == "/v1/customers":
            return {"id": f"cus_{name}", "object": "customer"}
        if path == "/v1/checkout/sessions":
            made = {"id": f"cs_test_{name}", "object": "checkout.session", "status": "open", **params}
            return {**made, "url": f"https://checkout.stripe.com/c/pay/cs_test_{name}"}
        if path == "/v1/billing_portal/sessions":
            return {
                "id": f"bps_{name}",
                "object": "billing_portal.session",
                "url": f"https://billing.stripe.com/{name}",
            }
        if path == "/v1/refunds":
            return {"id": f"re_{name}", "object": "refund", "status": "pending", **params}
        raise KeyError(path)


@contextmanager
def running_stripe() -> Iterator[StripeServer]:
    server = StripeServer()
    try:
        yield server
    finally:
        server.stop()


class _Handler(BaseHTTPRequestHandler):
    stripe: StripeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        params = dict(parse_qsl(self.rfile.read(length).decode()))
        if self._faulty(params):
            return
        key = self.headers.get("Idempotency-Key", "")
        with self.stripe.lock:
            kept = self.stripe.kept.get(key)
            if kept is not None and kept[0] != params:
                words = (
                    "Keys for idempotent requests can only be used with the same parameters they were first used with."
                )
                self._answer(400, {"error": {"type": "idempotency_error", "message": words}})
                return
            made = kept[1] if kept is not None else self.stripe.make(urlsplit(self.path).path, params)
            self.stripe.kept[key] = (params, made)
            deaf = self.stripe.deaf > 0
            self.stripe.deaf -= deaf
        if deaf:
            self.close_connection = True
            return
        self._answer(200, made)

    def do_GET(self) -> None:
        query = {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}
        if self._faulty(query):
            return
        path = urlsplit(self.path).path
        rows = {
            "/v1/events": self.stripe.events,
            "/v1/payment_intents": self.stripe.intents,
            "/v1/invoices": self.stripe.invoices,
        }[path]
        rows = sorted(rows, key=lambda row: -int(row.get("created", 0)))
        since = int(query.get("created[gte]", 0))
        rows = [row for row in rows if int(row.get("created", time.time())) >= since]
        if "starting_after" in query:
            rows = rows[[row["id"] for row in rows].index(query["starting_after"]) + 1 :]
        limit = int(query.get("limit", 10))
        self._answer(200, {"object": "list", "data": rows[:limit], "has_more": len(rows) > limit, "url": path})

    def do_DELETE(self) -> None:
        if not self._faulty({}):
            self._answer(200, {"id": self.path.rpartition("/")[2], "object": "customer", "deleted": True})

    def _faulty(self, params: dict[str, str]) -> bool:
        self.stripe.requests.append((self.command, urlsplit(self.path).path, params, dict(self.headers.items())))
        if self.stripe.mode == "down":
            self._answer(503, {"error": {"type": "api_error", "message": "Stripe is down."}})
        elif self.stripe.mode == "refuse":
            error = {
                "type": "invalid_request_error",
                "code": "resource_missing",
                "message": "No such customer: 'cus_x'",
            }
            self._answer(400, {"error": error})
        elif self.stripe.mode == "cut":
            self.close_connection = True
        else:
            return False
        return True

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Request-Id", f"req_{secrets.token_hex(6)}")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
