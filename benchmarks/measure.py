"""What every benchmark uses: rows of figures, a small HTTP load client, servers as children."""

import asyncio
import contextlib
import os
import platform
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratio` is what is judged: value over limit; `at` says on which side of `target` it must lie."""

    name: str
    value: float
    limit: float
    unit: str
    target: float
    at: Literal["least", "most"]

    @property
    def ratio(self) -> float:
        return self.value / self.limit if self.limit else float("inf")

    @property
    def met(self) -> bool:
        return self.ratio >= self.target if self.at == "least" else self.ratio <= self.target


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": os.cpu_count() or 1,
        "memory_gb": round(memory / 1e9),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def server(
    command: list[str], url: str, env: Mapping[str, str], *, patience: float = 60
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that serves `url`; it is ended at the end."""
    with tempfile.NamedTemporaryFile(prefix="finetuneflow-bench-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=log)
    try:
        wait_for(url, patience, process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, patience: float, process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server of {url} ended with {process.returncode}")
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.05)
    raise TimeoutError(url)


async def load(port: int, path: str, headers: Mapping[str, str], *, clients: int, seconds: float) -> tuple[int, bytes]:
    """Requests answered with 200 in `seconds`, by keep-alive connections that each wait for their answer."""
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *[f"{key}: {value}" for key, value in headers.items()]]
    request = ("\r\n".join(lines) + "\r\n\r\n").encode()
    end = time.monotonic() + seconds
    done = 0
    last = b""

    async def client() -> None:
        nonlocal done, last
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            last = await reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{head!r} {last[:300]!r}")
            done += 1
        writer.close()

    await asyncio.gather(*[client() for _ in range(clients)])
    return done, last


def median(values: list[float]) -> float:
    return statistics.median(values)
