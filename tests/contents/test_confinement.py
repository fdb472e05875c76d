"""The child process: its limits, what it may not do, and how it ends."""

import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backend.contents.extraction import (
    DocumentBroken,
    DocumentTooComplex,
    ExtractedDocument,
    ExtractionLimits,
    extract_to_file,
)
from tests.contents import children, corpus
from tests.contents.conftest import Extract

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and process lists of Linux")


def confined(code: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    """Run code in a process that has put the limits of a parser on itself."""
    prelude = (
        "import os, sys, subprocess, socket, ctypes, pathlib\n"
        "from backend.contents.parsers.confinement import *\n"
        "from backend.contents.parsers.limits import ExtractionLimits\n"
        "limits = ExtractionLimits(cpu_seconds=5, step_cpu_seconds=1)\n"
        "limit_resources(limits)\nrefuse_network_and_processes()\nstart_step(limits)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", before + prelude + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "code",
    [
        "socket.socket()",
        "socket.getaddrinfo('localhost', 80)",
        "socket.create_connection(('127.0.0.1', 9))",
        "subprocess.run(['true'])",
        "os.system('true')",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "open('/tmp/written-by-a-parser', 'w')",
        "os.open('/tmp/written-by-a-parser', os.O_WRONLY | os.O_CREAT)",
        "pathlib.Path('/tmp/written-by-a-parser').write_text('x')",
        "os.remove('/tmp/nothing')",
        "os.kill(os.getppid(), 0)",
        "ctypes.CDLL('libm.so.6')",
    ],
)
def test_what_a_parser_may_not_do(code: str) -> None:
    done = confined(f"try:\n    {code}\nexcept PermissionError as error:\n    print('refused', error)\n")
    assert done.stdout.startswith("refused A document parser may not"), done


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in {"x86_64", "aarch64"}, reason="the kernel's filter"
)
@pytest.mark.parametrize(
    "call",
    [
        "socket(2, 1, 0)",
        "socket(10, 2, 0)",
        "socket(1, 1, 0)",
        "fork()",
        "vfork()",
        "execv(b'/bin/true', None)",
        "open(b'/tmp/written-by-a-parser', os.O_WRONLY | os.O_CREAT, 0o600)",
        "open(b'/tmp', os.O_TMPFILE | os.O_RDWR, 0o600)",
        "creat(b'/tmp/written-by-a-parser', 0o600)",
        "rename(b'/tmp/a', b'/tmp/b')",
        "unlink(b'/tmp/written-by-a-parser')",
        "symlink(b'/etc/passwd', b'/tmp/written-by-a-parser')",
        "mkdir(b'/tmp/written-by-a-parser', 0o700)",
        "chmod(b'/tmp', 0o777)",
        "kill(os.getppid(), 0)",
        "ptrace(16, os.getppid(), 0, 0)",
        "setrlimit(0, (ctypes.c_long * 2)(-1, -1))",
        "prlimit(0, 0, (ctypes.c_long * 2)(-1, -1), None)",
        "syscall(435, 0, 0)",  # clone3
    ],
)
def test_what_native_code_may_not_do(call: str) -> None:
    """An exploited parser does not ask Python: the kernel answers it."""
    done = confined(
        f"ctypes.set_errno(0)\nprint(libc.{call}, ctypes.get_errno())",
        before="import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n",
    )
    assert done.stdout.split() == ["-1", "1"], done


def test_reading_still_works_under_the_filter() -> None:
    done = confined("print(len(open('/etc/passwd').read()) > 0, __import__('resource').getrlimit(0)[0] > 0)")
    assert done.stdout.split() == ["True", "True"], done


@linux
def test_memory_is_limited() -> None:
    done = confined("bytearray(700 * 1024 * 1024)")
    assert "MemoryError" in done.stderr


@linux
def test_time_is_limited() -> None:
    assert confined("while True: pass").returncode == -signal.SIGPROF


@linux
def test_output_is_limited() -> None:
    done = confined(
        "print(ExtractionLimits().output_bytes, __import__('resource').getrlimit(__import__('resource').RLIMIT_FSIZE))"
    )
    assert done.stdout.split() == ["134217728", "(134217728,", "134217728)"]


@linux
async def test_the_environment_of_the_child_holds_no_secret(
    extract_bytes: Extract, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-in-the-environment")
    task = asyncio.create_task(extract_bytes(slow_document(), corpus.PDF))
    child = await started_child()
    environment = Path(f"/proc/{child}/environ").read_bytes()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert b"PYTHONPATH=" in environment
    assert b"canary" not in environment


@linux
async def test_cancelling_kills_the_child_and_leaves_no_file(tmp_path: Path) -> None:
    source, destination = tmp_path / "slow.pdf", tmp_path / "text.jsonl"
    source.write_bytes(slow_document())
    task = asyncio.create_task(extract_to_file(source, corpus.PDF, destination))
    child = await started_child()
    assert os.getsid(child) == child != os.getsid(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{child}").exists()
    assert not destination.exists()


@linux
async def test_the_wall_clock_ends_a_child(extract_bytes: Extract) -> None:
    started = time.monotonic()
    with pytest.raises(DocumentTooComplex, match="Split it into smaller documents"):
        await extract_bytes(slow_document(), corpus.PDF, ExtractionLimits(timeout_seconds=0.7))
    assert time.monotonic() - started < 5


@linux
async def test_a_page_that_takes_too_long_ends_a_child(extract_bytes: Extract) -> None:
    with pytest.raises(DocumentTooComplex):
        await extract_bytes(slow_document(), corpus.PDF, ExtractionLimits(step_cpu_seconds=0.5))


@linux
async def test_too_little_memory_is_a_typed_error(extract_bytes: Extract) -> None:
    for megabytes in (1, 16, 24, 28):
        with pytest.raises(DocumentTooComplex):
            await extract_bytes(slow_document(), corpus.PDF, ExtractionLimits(memory_bytes=megabytes * 1024 * 1024))


@linux
def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    source = tmp_path / "slow.pdf"
    source.write_bytes(slow_document())
    code = (
        "import asyncio\nfrom pathlib import Path\nfrom backend.contents.extraction import extract\n"
        f"asyncio.run(extract(Path({str(source)!r}), 'application/pdf'))\n"
    )
    # What a killed process leaves behind goes with the folder of the test.
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment) as parent:
        child = wait_for_child(parent.pid)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 5
        while children.is_running(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not children.is_running(child)


async def test_an_older_text_at_the_destination_is_replaced(tmp_path: Path) -> None:
    source, destination = tmp_path / "a.txt", tmp_path / "text.jsonl"
    source.write_text("A sentence.")
    destination.write_bytes(b"x" * 10_000)
    summary = await extract_to_file(source, corpus.TEXT, destination)
    document = ExtractedDocument.from_bytes(destination.read_bytes())
    assert document.summary() == summary
    assert [json.loads(line)["text"] for line in destination.read_bytes().splitlines()[1:]] == ["A sentence."]


async def test_an_unknown_type_is_refused(extract_bytes: Extract) -> None:
    with pytest.raises(DocumentBroken, match="image/png cannot be read"):
        await extract_bytes(b"x", "image/png")


def slow_document() -> bytes:
    """One page that takes seconds: text in hundreds of thousands of places."""
    words = b"".join(b"BT /F1 9 Tf %d %d Td (a b) Tj ET\n" % (i % 600, i * 7 % 790) for i in range(120_000))
    return corpus.one_page(corpus.stream(words))


async def started_child() -> int:
    return await asyncio.to_thread(wait_for_child, os.getpid())


def wait_for_child(parent: int) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for child in children.parser_children(parent):
            return child
        time.sleep(0.02)
    raise TimeoutError("no child was started")
