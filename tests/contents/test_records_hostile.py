"""Files made to hurt: each ends in a clear answer of the confined child, within seconds and bounded memory."""

import json
import time
from pathlib import Path

import pytest

from backend.contents.extraction import (
    DocumentTooComplex,
    DocumentTooLarge,
    EmptyDocument,
    ExtractionError,
    ExtractionLimits,
)
from backend.contents.records.normalising import normalise
from backend.contents.types import CSV, JSON, JSON_LINES

LIMITS = ExtractionLimits(memory_bytes=256 * 1024 * 1024, timeout_seconds=60)
GOOD = '{"instruction": "Q", "output": "A"}'
MB = 1_000_000


@pytest.mark.parametrize(
    ("content", "mime_type", "outcome"),
    [
        (b"[" * 50 * MB, JSON, DocumentTooComplex),
        (b"[" * 50 * MB, JSON_LINES, DocumentTooComplex),
        (b'{"a":' * 10 * MB, JSON, DocumentTooComplex),
        (b"[" + b"," * 50 * MB, JSON, DocumentTooComplex),
        (b"[" + b'"' * 50 * MB, JSON, DocumentTooComplex),
        (b"x\n" * 20 * MB, JSON_LINES, DocumentTooLarge),
        (b'question,answer\n"' + b"x\n" * 20 * MB, CSV, DocumentTooLarge),
        (b"question,answer\n" + b'"\n",' * 10 * MB, CSV, DocumentTooLarge),
        (b" " * 20 * MB, JSON_LINES, EmptyDocument),
        (b'{"instruction": "Q", "output": "' + b"x" * 49 * MB + b'"}', JSON_LINES, (0, {"too_long": 1})),
        (b'{"instruction": "' + b"x" * 49 * MB + b'"}\n' + GOOD.encode() * 1, JSON_LINES, (1, {"too_long": 1})),
        (b'[{"output": "' + b"x" * 45 * MB + b'"}, ' + GOOD.encode() + b"]", JSON, (1, {"too_long": 1})),
        (b"question,answer\n" + b"," * 45 * MB + b"\nQ,A\n", CSV, (1, {"too_long": 1})),
        (b'["' + b"\\" * 50 * MB, JSON, (0, {"too_long": 1, "bad_json": 1})),
        (f'[{{"a": {"9" * MB}}}, {GOOD}]'.encode(), JSON, (1, {"bad_json": 1})),
        (f'[{{"a": {"9" * MB}e{"9" * MB}}}, {GOOD}]'.encode(), JSON, (1, {"too_long": 1})),
    ],
    ids=range(16),
)
async def test_a_hostile_file(
    tmp_path: Path, content: bytes, mime_type: str, outcome: type[ExtractionError] | tuple[int, dict[str, int]]
) -> None:
    source, destination = tmp_path / "source", tmp_path / "rows"
    source.write_bytes(content)
    started = time.monotonic()
    if isinstance(outcome, tuple):
        report = await normalise(source, mime_type, destination, LIMITS)
        assert (report["valid"], report["error_counts"]) == outcome
    else:
        with pytest.raises(outcome) as caught:
            await normalise(source, mime_type, destination, LIMITS)
        assert len(str(caught.value)) > 20
        assert not destination.exists()
    assert time.monotonic() - started < 45


async def test_50_mb_of_rows_in_bounded_memory(tmp_path: Path) -> None:
    """The child may have half a gigabyte; a quarter of that is more than it needs, whatever the container."""
    row = json.dumps({"instruction": "What is it?", "input": "", "output": "word " * 40})
    tight = ExtractionLimits(memory_bytes=128 * 1024 * 1024)
    count = 50 * MB // (len(row) + 2)
    for container, mime_type in ((f"{row}\n" * count, JSON_LINES), ("[" + f"{row}, " * (count - 1) + row + "]", JSON)):
        source = tmp_path / "source"
        source.write_text(container)
        report = await normalise(source, mime_type, tmp_path / "rows", tight)
        assert report["valid"] == count
