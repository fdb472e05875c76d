"""Imitations of providers that others wrote: found in tests/outside, started as processes, ended by their id."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[3]
NODE_MODULES = ROOT / "tests" / "outside" / "node_modules"
SPECS = ROOT.parent / "shared" / "specs"
START_SECONDS = 60.0


def spec(name: str) -> Path:
    """A vendor's own description of its API; skips where it is not beside the checkout."""
    path = SPECS / name
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {SPECS.parent.name}/{SPECS.name} beside the checkout")
    return path


@contextmanager
def node_server(script: str, *arguments: str, ready: str = "/") -> Iterator[str]:
    """A server of a package in tests/outside on a free port (`{port}` in the arguments); yields its URL."""
    node, path = shutil.which("node"), NODE_MODULES / script
    if node is None or not path.is_file():
        pytest.skip("needs node and `npm ci --ignore-scripts` in tests/outside")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [node, str(path), *(argument.format(port=port) for argument in arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, url + ready)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            httpx.get(url, timeout=2)
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"no server at {url} after {START_SECONDS:.0f} s")
