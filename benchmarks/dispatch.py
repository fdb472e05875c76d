"""From POST to the first line of the job's code in a worker of the running product: the median against 50 ms."""

import json
import secrets
import tempfile
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, median

LIMIT_MS, ROUNDS = 50.0, 60
_TEXT = "The Ferrule 3 lamp is made in Osterby. The Ferrule 3 lamp weighs 410 grams.\n" * 5


def run() -> list[Row]:
    from backend.embedded.stack import StackOptions, running
    from backend.kit import migrations

    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as folder:
        options = StackOptions(
            data_dir=Path(folder) / "data",
            port=0,
            migrate=migrations.upgrade,
            report=lambda line: None,
            env={"LOG_LEVEL": "INFO"},
        )
        with running(options) as stack:
            waits = _measure(stack.api_url)
    return [Row("POST to first line in the worker, p50", median(waits), LIMIT_MS, "ms", 1.0, "most")]


def _measure(api: str) -> list[float]:
    project = _call(api, "POST", "/projects", {"name": "Bench"})["id"]
    _upload(api, project)
    waits: list[float] = []
    for number in range(ROUNDS + 5):
        sent = time.time()
        job = _call(api, "POST", f"/projects/{project}/chunks/generate", {"chunk_size_tokens": 64 + number % 2})
        while (row := _call(api, "GET", f"/jobs/{job['job_id']}"))["finished_at"] is None:
            time.sleep(0.01)
        # Both clocks are this machine's. `started_at` is written by the claim, the first thing that a worker does.
        if number >= 5:
            waits.append((datetime.fromisoformat(row["started_at"]).timestamp() - sent) * 1000)
    return waits


def _upload(api: str, project: str) -> None:
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="lamp.txt"\r\n\r\n'
    body = f"{head}{_TEXT}\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{api}/projects/{project}/files/upload", body, headers)
    urllib.request.urlopen(request, timeout=60).close()


def _call(api: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{api}{path}", data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
