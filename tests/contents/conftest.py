"""What the tests of documents share."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from backend.contents.extraction import ExtractedDocument, ExtractionLimits, extract

Extract = Callable[..., Coroutine[Any, Any, ExtractedDocument]]


@pytest.fixture
def extract_bytes(tmp_path: Path) -> Extract:
    """Extract a document given as bytes."""

    async def run(data: bytes, mime_type: str, limits: ExtractionLimits | None = None) -> ExtractedDocument:
        path = tmp_path / "document"
        path.write_bytes(data)
        return await extract(path, mime_type, limits or ExtractionLimits())

    return run
