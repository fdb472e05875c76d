"""Ten thousand pairs in one request, against the two seconds that it may take."""

import http.client
import json
import secrets
import sys
import tempfile
import time
from typing import Any

from benchmarks.measure import Row, free_port, median, server

PAIRS, ROUNDS = 10_000, 7
LIMIT_SECONDS = 2.0


def run() -> list[Row]:
    from backend.embedded.servers import temporary_servers
    from backend.kit import migrations

    with temporary_servers() as servers, tempfile.TemporaryDirectory() as folder:
        migrations.upgrade(servers.database_url)
        port = free_port()
        env = {
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "SECRET_KEY": secrets.token_urlsafe(48),
            "AUTH_MODE": "token",
            "DATA_DIR": folder,
            "LOG_LEVEL": "WARNING",
            "PLANS": '{"Free": {}}',
            "RATE_LIMIT_POST": "100000",
        }
        command = [sys.executable, "-m", "uvicorn", "backend.main:app", "--host", "127.0.0.1", "--port", str(port)]
        flags = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        with server([*command, *flags], f"http://127.0.0.1:{port}/health", env):
            client = _Client(port)
            fresh = [_seconds(client, client.make_dataset(), added=PAIRS) for _ in range(ROUNDS)]
            again = [_seconds(client, client.dataset, added=0) for _ in range(ROUNDS)]
    return [
        Row(f"{PAIRS:,} pairs in one request", median(fresh), LIMIT_SECONDS, "s", 1.0, "most"),
        Row(f"the same {PAIRS:,} again, each named as a duplicate", median(again), LIMIT_SECONDS, "s", 1.0, "most"),
    ]


def _seconds(client: "_Client", dataset: int, *, added: int) -> float:
    """From the first byte sent to the last byte read, the answer checked."""
    body = json.dumps({"pairs": [_pair(number) for number in range(PAIRS)]}).encode()
    started = time.perf_counter()
    answer = client.send("POST", f"/api/datasets/{dataset}/pairs/bulk", body)
    seconds = time.perf_counter() - started
    found = json.loads(answer)
    assert (found["added"], len(found["duplicates"]), found["pairs_count"]) == (added, PAIRS - added, PAIRS)
    return seconds


def _pair(number: int) -> dict[str, Any]:
    """Some 450 characters, as long as a generated example."""
    return {
        "question": f"Who made lamp number {number} of Osterby, in which year, and of which glass is its shade?",
        "answer": f"Lamp number {number} was made by the Ferrule works in {1900 + number % 90}."
        + " Its shade is of blue glass that was blown in two parts and joined by a ring of brass." * 4,
        "metadata": {"source": "manual", "sheet": number % 40},
    }


class _Client:
    """A registered user on one keep-alive connection, with its last dataset."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._headers = {"Content-Type": "application/json"}
        account = {"email": "bench@example.com", "password": "a long password", "name": "Bench"}
        self._call("/api/auth/register", account)
        login = self._call("/api/auth/login", {"username": account["email"], "password": account["password"]})
        self._headers["Authorization"] = f"Bearer {login['access_token']}"
        self._project = self._call("/api/projects", {"name": "Bench"})["id"]
        self.dataset = 0

    def make_dataset(self) -> int:
        body = {"project_id": self._project, "name": "Bench", "model": "gpt-4o-mini-2024-07-18", "content_ids": []}
        self.dataset = int(self._call("/api/datasets", body)["id"])
        return self.dataset

    def send(self, method: str, path: str, body: bytes) -> bytes:
        self._connection.request(method, path, body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status < 300, content[:500]
        return content

    def _call(self, path: str, body: Any) -> Any:
        return json.loads(self.send("POST", path, json.dumps(body).encode()))
