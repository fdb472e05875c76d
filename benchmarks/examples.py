"""A dataset of a million examples: a page far behind against the first one, and an export against a bare loop."""

import asyncio
import http.client
import json
import os
import secrets
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from benchmarks.measure import Row, free_port, median, server

EXAMPLES = 1_000_000
PAGE, FAR = 50, 49_950
ROUNDS = 60
SLOWER_AT_MOST, GROWTH_MB, PEER_SHARE = 3.0, 50.0, 0.5
_READ_BYTES = 256 * 1024

# Loaded without the triggers, which would look at each row.
_LOAD = f"""
INSERT INTO examples
  (public_id, dataset_id, split, instruction, input, output, token_count, fingerprint, meta, is_valid)
SELECT uuidv7(), $1, CASE WHEN n % 10 = 0 THEN 'eval' ELSE 'train' END,
       'Who made lamp number ' || n || ' of Osterby, and of which glass?', '',
       'Lamp number ' || n || ' was made by the Ferrule works in ' || 1900 + n % 90
         || repeat(', of blue glass', n % 20) || '.',
       40 + n % 100, md5(n::text) || md5((n + 1)::text), jsonb_build_object('page', n % 300), true
FROM generate_series(1, {EXAMPLES}) n
"""
_PEER = """
SELECT public_id::text AS id, split, instruction, input, output, meta AS metadata
FROM examples WHERE dataset_id = $1 AND is_valid AND split <> 'preview' ORDER BY id
"""


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
            "RATE_LIMIT_GET": "100000",
        }
        command = [sys.executable, "-m", "uvicorn", "backend.main:app", "--host", "127.0.0.1", "--port", str(port)]
        flags = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        with server([*command, *flags], f"http://127.0.0.1:{port}/health", env) as process:
            client = _Client(port)
            project = client.call("POST", "/projects", {"name": "Bench"})["id"]
            dsn = servers.database_url.replace("+asyncpg", "")
            dataset = asyncio.run(_load(dsn, project))
            client.reconnect()
            pages = _pages(client, project)
            export = _export(client, project, process.pid)
            peer = asyncio.run(_peer(dsn, dataset))
    return [pages, *_judge(export, peer)]


def _pages(client: "_Client", project: str) -> Row:
    """Both pages in turn, so that a noisy neighbour disturbs both."""
    path = f"/projects/{project}/dataset/examples?limit={PAGE}&offset="
    client.call("GET", f"{path}0")  # counts the dataset, once
    seconds: dict[int, list[float]] = {0: [], FAR: []}
    for _ in range(ROUNDS):
        for offset, measured in seconds.items():
            started = time.perf_counter()
            page = client.call("GET", f"{path}{offset}")
            measured.append(time.perf_counter() - started)
            assert (len(page["items"]), page["total"]) == (PAGE, EXAMPLES)
            assert page["items"][0]["data"]["instruction"].startswith(f"Who made lamp number {offset + 1} ")
    first, far = (median(measured) * 1000 for measured in seconds.values())
    return Row(
        f"page {FAR // PAGE + 1:,} against page 1 of {EXAMPLES:,} examples", far, first, "ms", SLOWER_AT_MOST, "most"
    )


def _judge(export: dict[str, float], peer: dict[str, float]) -> list[Row]:
    assert export["rows"] == peer["rows"], "both must send the same rows"
    return [
        Row(
            f"growth of the API's memory over an export of {export['rows']:,.0f} rows ({export['megabytes']:.0f} MB)",
            export["growth_mb"],
            GROWTH_MB,
            "MB",
            1.0,
            "most",
        ),
        Row(
            "export over HTTP against a bare asyncpg cursor with orjson",
            export["rows"] / export["seconds"],
            peer["rows"] / peer["seconds"],
            "rows/s",
            PEER_SHARE,
            "least",
        ),
    ]


def _export(client: "_Client", project: str, pid: int) -> dict[str, float]:
    """Reads the whole file as it comes; memory is looked at every 20 ms."""
    path = f"/projects/{project}/dataset/export"
    client.download(f"{path}?split=eval")  # what is loaded once in a process's life is no growth
    before = _memory_mb(pid)
    peak, is_over = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.02):
            peak = max(peak, _memory_mb(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        rows, size = client.download(path)
    finally:
        seconds = time.perf_counter() - started
        is_over.set()
        watcher.join()
    return {"rows": rows, "seconds": seconds, "megabytes": size / 1e6, "growth_mb": peak - before}


async def _peer(dsn: str, dataset: int) -> dict[str, float]:
    """The least that such an export can be: one cursor, one line a row, nobody to send it to."""
    connection = await asyncpg.connect(dsn)
    await connection.set_type_codec("jsonb", encoder=str, decoder=orjson.loads, schema="pg_catalog")
    rows = size = 0
    started = time.perf_counter()
    async with connection.transaction():
        async for record in connection.cursor(_PEER, dataset, prefetch=1000):
            size += len(orjson.dumps(dict(record), option=orjson.OPT_APPEND_NEWLINE))
            rows += 1
    seconds = time.perf_counter() - started
    await connection.close()
    return {"rows": rows, "seconds": seconds, "megabytes": size / 1e6}


async def _load(dsn: str, project: str) -> int:
    """Puts the examples into a dataset of the project; returns the dataset's id."""
    connection = await asyncpg.connect(dsn)
    dataset: int = await connection.fetchval(
        "INSERT INTO datasets (public_id, project_id, name, status) "
        "SELECT uuidv7(), id, 'Bench', 'ready' FROM projects WHERE public_id = $1 RETURNING id",
        project,
    )
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(_LOAD, dataset, timeout=180)
    await connection.execute("VACUUM ANALYZE examples", timeout=60)
    await connection.close()
    return dataset


def _memory_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class _Client:
    """A registered user on one keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._headers = {"Content-Type": "application/json"}
        account = {"email": "bench@example.com", "password": "a long password", "name": "Bench"}
        self.call("POST", "/api/auth/register", account)
        login = self.call("POST", "/api/auth/login", {"username": account["email"], "password": account["password"]})
        self._headers["Authorization"] = f"Bearer {login['access_token']}"

    def reconnect(self) -> None:
        """After a pause, in which the server has closed the connection."""
        self._connection.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status < 300, content
        return orjson.loads(content)

    def download(self, path: str) -> tuple[int, int]:
        """Lines and bytes of an answer that is read as it comes and kept nowhere."""
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        assert answer.status == 200, answer.read()
        lines = size = 0
        while part := answer.read(_READ_BYTES):
            lines += part.count(b"\n")
            size += len(part)
        return lines, size
