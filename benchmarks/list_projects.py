"""A counted list of 50 projects with figures, for a login, against the same SQL on bare Starlette and raw asyncpg."""

import asyncio
import json
import secrets
import sys
import tempfile
import urllib.request
from typing import Any

from benchmarks.measure import Row, free_port, load, median, server

CLIENTS, SECONDS, ROUNDS, WARM_UP = 16, 3.0, 7, 1.0
TARGET = 0.5


def run() -> list[Row]:
    from backend.embedded.servers import temporary_servers
    from backend.kit import migrations

    with temporary_servers() as servers, tempfile.TemporaryDirectory() as folder:
        migrations.upgrade(servers.database_url)
        env = {
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "SECRET_KEY": secrets.token_urlsafe(48),
            "AUTH_MODE": "token",
            "DATA_DIR": folder,
            "LOG_LEVEL": "INFO",
            "PLANS": '{"Free": {}}',
            # Counted as in production, with limits that the load does not reach.
            "RATE_LIMIT_GET": "1000000",
            "RATE_LIMIT_POST": "1000000",
        }
        with _Uvicorn("backend.main:app", env) as ours, _Uvicorn("benchmarks.peers.raw_list:app", env) as raw:
            token, user = _prepare(ours)
            headers = {"Authorization": f"Bearer {token}"}
            _same_answer(ours, raw, headers, user)
            return [asyncio.run(_compare(ours, raw, headers, user))]


async def _compare(ours: int, raw: int, headers: dict[str, str], user: int) -> Row:
    """Rounds in turn, so that a noisy neighbour disturbs both; the median of the rounds counts."""
    mine: list[float] = []
    peer: list[float] = []
    for number in range(ROUNDS + 1):
        seconds = SECONDS if number else WARM_UP
        requests, _ = await load(ours, "/projects?limit=50", headers, clients=CLIENTS, seconds=seconds)
        limit, _ = await load(raw, f"/projects?user={user}", {}, clients=CLIENTS, seconds=seconds)
        if number:
            mine.append(requests / seconds)
            peer.append(limit / seconds)
    return Row("list of 50 projects against raw asyncpg", median(mine), median(peer), "requests/s", TARGET, "least")


class _Uvicorn:
    """A uvicorn process; entering gives its port."""

    def __init__(self, app: str, env: dict[str, str]) -> None:
        self.port = free_port()
        flags = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        command = [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(self.port), *flags]
        self._server = server(command, f"http://127.0.0.1:{self.port}/health", env)

    def __enter__(self) -> int:
        self._server.__enter__()
        return self.port

    def __exit__(self, *failure: Any) -> None:
        self._server.__exit__(*failure)


def _prepare(port: int) -> tuple[str, int]:
    """A user with 50 projects; returns the token and the user's id."""
    account = {"email": "bench@example.com", "password": "a long password", "name": "Bench"}
    user = _call(port, "/api/auth/register", account)
    login = _call(port, "/api/auth/login", {"username": account["email"], "password": account["password"]})
    for number in range(50):
        _call(port, "/projects", {"name": f"Project {number}", "task_type": "qa"}, login["access_token"])
    return login["access_token"], user["id"]


def _call(port: int, path: str, body: dict[str, Any], token: str = "") -> Any:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _same_answer(ours: int, raw: int, headers: dict[str, str], user: int) -> None:
    """Both sides must send the same bytes, or the comparison says nothing."""
    _, mine = asyncio.run(load(ours, "/projects?limit=50", headers, clients=1, seconds=0.1))
    _, peer = asyncio.run(load(raw, f"/projects?user={user}", {}, clients=1, seconds=0.1))
    assert json.loads(mine) == json.loads(peer)
