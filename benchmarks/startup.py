"""The embedded start on a warm folder to a healthy /health, and the memory of the API process."""

import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row, median, wait_for

LIMIT_SECONDS, LIMIT_MB, ROUNDS = 5.0, 200.0, 3


def run() -> list[Row]:
    from backend.embedded.stack import StackOptions, running
    from backend.kit import migrations

    seconds: list[float] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as folder:
        options = StackOptions(
            data_dir=Path(folder) / "data", port=0, migrate=migrations.upgrade, report=lambda line: None
        )
        for number in range(ROUNDS + 1):
            started = time.monotonic()
            with running(options) as stack:
                wait_for(f"{stack.api_url}/health", 60)
                # The first start makes the cluster; only the later ones are warm.
                if number:
                    seconds.append(time.monotonic() - started)
                    time.sleep(2)
                    memory.append(_resident_mb(stack.pids()["api"]))
    return [
        Row("embedded start, warm folder, to a healthy /health", median(seconds), LIMIT_SECONDS, "s", 1.0, "most"),
        Row("memory of the API process", max(memory), LIMIT_MB, "MB", 1.0, "most"),
    ]


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024
