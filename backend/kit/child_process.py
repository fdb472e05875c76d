"""Runs a program as a child in a session of its own: its lines as they come, its end, and nobody left behind."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

OnLine = Callable[[bytes], Awaitable[None]]
_TAIL_BYTES = 4000
_LINE_BYTES = 16 * 1024 * 1024


async def run_child(
    command: Sequence[str], on_line: OnLine, *, environment: Mapping[str, str], grace_seconds: float
) -> tuple[int, str]:
    """Hands each line of the child's stdout on; returns its exit code and the end of what it wrote to stderr.

    A cancel of this call, or an error of `on_line`, sends SIGTERM, then after the grace SIGKILL, to the child's whole
    process group.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=_LINE_BYTES,
        env=dict(environment),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    complaints = asyncio.create_task(_tail(process.stderr))
    try:
        async for line in process.stdout:
            await on_line(line)
        exit_code = await process.wait()
        return exit_code, (await complaints).decode("utf-8", "replace")
    finally:
        await end(process, grace_seconds)
        complaints.cancel()


async def _tail(stream: asyncio.StreamReader) -> bytes:
    tail = b""
    while part := await stream.read(65_536):
        tail = (tail + part)[-_TAIL_BYTES:]
    return tail


async def end(process: asyncio.subprocess.Process, grace_seconds: float) -> None:
    """SIGTERM, then after the grace SIGKILL, to a child that leads its session, and to all that it started.

    Leaves no process of the child's group alive, whatever happens to this task meanwhile.
    """
    try:
        if process.returncode is None:
            _signal(process.pid, signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), grace_seconds)
    finally:
        _signal(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
