"""Children that talk, fail, hang, and leave children of their own."""

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from backend.kit.child_process import run_child


async def run(program: str, *arguments: str, grace_seconds: float = 1.0) -> tuple[int, str, list[str]]:
    lines: list[str] = []

    async def read(line: bytes) -> None:
        lines.append(line.decode().strip())

    command = [sys.executable, "-c", program, *arguments]
    code, complaints = await run_child(command, read, environment=dict(os.environ), grace_seconds=grace_seconds)
    return code, complaints, lines


async def test_lines_exit_code_and_the_end_of_what_it_complains_of() -> None:
    program = "import sys; print('one'); print('two'); sys.stderr.write('x' * 100_000 + ' the end'); sys.exit(3)"
    code, complaints, lines = await run(program)
    assert (code, lines) == (3, ["one", "two"])
    assert complaints.endswith(" the end") and len(complaints) <= 4000


async def test_a_long_line_comes_whole() -> None:
    code, _, [line] = await run("print('y' * 3_000_000)")
    assert (code, len(line)) == (0, 3_000_000)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_cancel_ends_the_whole_family_even_if_it_will_not_listen(tmp_path: Path) -> None:
    program = (
        "import signal, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "Path(sys.argv[1]).write_text(str(child.pid))\n"
        "time.sleep(100)\n"
    )
    told = tmp_path / "pid"
    running = asyncio.create_task(run(program, str(told), grace_seconds=0.3))
    while not (told.exists() and told.read_text()):
        await asyncio.sleep(0.02)
    grandchild = int(told.read_text())
    assert is_alive(grandchild)
    started = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - started < 5
    deadline = time.monotonic() + 5
    while is_alive(grandchild):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_an_error_of_the_reader_ends_the_child() -> None:
    async def refuse(line: bytes) -> None:
        raise LookupError(line.decode().strip())

    program = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    with pytest.raises(LookupError) as caught:
        await run_child([sys.executable, "-c", program], refuse, environment=dict(os.environ), grace_seconds=1.0)
    assert not is_alive(int(str(caught.value)))
