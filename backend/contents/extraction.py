"""A document to its text, parsed in a child process that may fail, hang or swell without harm to the caller."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from backend.contents import languages
from backend.contents.blocks import HEADER_BYTES, Block, DocumentSummary, ExtractedDocument, read_blocks
from backend.contents.parsers.failures import (
    FAILURES,
    DocumentBroken,
    DocumentEncrypted,
    DocumentHasNoText,
    DocumentTooComplex,
    DocumentTooLarge,
    EmptyDocument,
    ExtractionError,
)
from backend.contents.parsers.limits import ExtractionLimits

__all__ = [
    "Block",
    "DocumentBroken",
    "DocumentEncrypted",
    "DocumentHasNoText",
    "DocumentSummary",
    "DocumentTooComplex",
    "DocumentTooLarge",
    "EmptyDocument",
    "ExtractedDocument",
    "ExtractionError",
    "ExtractionLimits",
    "extract",
    "extract_to_file",
    "find_language",
    "read_blocks",
    "run_confined",
]

DEFAULT_LIMITS = ExtractionLimits()

_SOURCE_ROOT = Path(__file__).resolve().parents[2]
_MAX_REPORT_BYTES = 65_536
_TELLING_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGBUS})
_SAMPLE_PLACES = 12
_SAMPLE_CHARACTERS = 500
_SAMPLE_BLOCKS = 20


async def extract(path: Path, mime_type: str, limits: ExtractionLimits = DEFAULT_LIMITS) -> ExtractedDocument:
    """The document in memory; see `extract_to_file` for errors, and use that one where documents may be long."""
    with tempfile.TemporaryDirectory(prefix="finetuneflow-extract-") as folder:
        stored = Path(folder) / "document.jsonl"
        await extract_to_file(path, mime_type, stored, limits)
        return await asyncio.to_thread(_load, stored)


async def extract_to_file(
    path: Path, mime_type: str, destination: Path, limits: ExtractionLimits = DEFAULT_LIMITS
) -> DocumentSummary:
    """Write the text of the document at `path` to `destination` in its stored form (see `blocks`).

    Raises an `ExtractionError` whose `code` says why there is no text; then `destination` does not exist. On
    cancellation the child is killed before the cancellation goes on.
    """
    destination.touch(mode=0o600)
    done = False
    try:
        await run_confined("backend.contents.parsers", path, destination, mime_type, limits)
        with destination.open("rb") as file:
            summary = DocumentSummary.from_line(file.readline())
        done = True
        return summary
    except ValueError as error:
        raise DocumentBroken from error
    finally:
        if not done:
            destination.unlink(missing_ok=True)


async def find_language(stored: Path) -> str | None:
    """The language (ISO 639-1) of a document in its stored form, by its prose at a dozen places; None if unclear."""
    return await asyncio.to_thread(_find_language, stored)


def _find_language(stored: Path) -> str | None:
    with stored.open("rb") as file:
        step = max(1, (stored.stat().st_size - HEADER_BYTES) // _SAMPLE_PLACES)
        sample = []
        read_until = 0
        for place in range(_SAMPLE_PLACES):
            # The line that this place is in the middle of belongs to the place before.
            file.seek(max(read_until, HEADER_BYTES - 1 + place * step))
            file.readline()
            sample.append(_prose(file))
            read_until = file.tell() - 1
    return languages.detect("\n".join(sample))


def _prose(file: BinaryIO) -> str:
    """A few hundred characters of the next blocks; code and tables are in no language."""
    found = ""
    for line in islice(file, _SAMPLE_BLOCKS):
        block = Block.from_line(line)
        if block.kind not in {"code", "table"}:
            found += block.text[:_SAMPLE_CHARACTERS] + "\n"
        if len(found) >= _SAMPLE_CHARACTERS:
            break
    return found


def _load(stored: Path) -> ExtractedDocument:
    try:
        with stored.open("rb") as file:
            return ExtractedDocument.from_lines(file)
    except ValueError as error:
        raise DocumentBroken from error


async def run_confined(
    module: str, source: Path, destination: Path, mime_type: str, limits: ExtractionLimits
) -> dict[str, Any]:
    """Runs `module` in a limited child on a stranger's file; returns what it reported.

    Raises the `ExtractionError` that the child told of, or the one that its end means. On cancellation the child is
    killed before the cancellation goes on.
    """
    return _report_of(*await _run_child(module, source, mime_type, destination, limits))


async def _run_child(
    module: str, source: Path, mime_type: str, destination: Path, limits: ExtractionLimits
) -> tuple[bytes, int]:
    """What the child printed, and how it ended; past the wall-clock limit `DocumentTooComplex`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        # -P: the working directory is no place to import from. -B: it may write nothing but the destination.
        "-PB",
        "-m",
        module,
        str(source.resolve()),
        str(destination.resolve()),
        mime_type,
        limits.to_json(),
        str(os.getpid()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
        # No secret of the service is in the environment of a process that reads a stranger's file.
        env={"PYTHONPATH": str(_SOURCE_ROOT), "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(limits.timeout_seconds):
            report = bytearray()
            # A pipe gives what is in it, which may be less than the whole.
            while len(report) < _MAX_REPORT_BYTES and (part := await process.stdout.read(_MAX_REPORT_BYTES)):
                report += part
            return bytes(report), await process.wait()
    except TimeoutError as error:
        raise DocumentTooComplex from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # It is dead in any case: this only reaps it, and a second cancellation must not leave a zombie.
            await asyncio.shield(process.wait())


def _report_of(report: bytes, returncode: int) -> dict[str, Any]:
    if returncode < 0:
        # CPU and memory limits end the child by SIGXCPU, SIGPROF, SIGKILL or an abort in native code.
        raise DocumentBroken if -returncode in _TELLING_SIGNALS else DocumentTooComplex
    try:
        fields = json.loads(report)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        # Too little memory even to start or to report: exit code 1 and nothing said.
        raise DocumentTooComplex
    if "code" not in fields:
        return fields
    failure = FAILURES.get(str(fields.get("code")), DocumentBroken)
    sentence = fields.get("sentence")
    raise failure(sentence if isinstance(sentence, str) else "")
