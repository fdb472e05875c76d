"""Writes down the speech of one recording, piece by piece: `python -m backend.trainers.transcribe CONFIG.json`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from backend.trainers import process
from backend.trainers.events import Events
from backend.trainers.speech import ENGINES, SAMPLE_RATE

_FULL_SCALE = 32_768.0


@dataclass(frozen=True, kw_only=True)
class TranscribeConfig:
    """`audio` holds raw signed 16-bit samples, mono, 16 kHz; `pieces` are [number, first sample, end].

    `language` None: that of the first piece with speech, and then for all.
    """

    engine: Literal["faster-whisper", "openai-whisper"]
    model: Path
    audio: Path
    pieces: list[list[int]]
    language: str | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 0


def transcribe(config: TranscribeConfig, events: Events, cancellation: process.Cancellation) -> None:
    """Emits `spoken` (seconds of the recording that are done) and, for each piece, `piece` with its segments."""
    events.stage("loading")
    engine = ENGINES[config.engine](config.model, device=config.device, threads=config.threads)
    # Only the pages that a piece lies on are read.
    recording = np.memmap(config.audio, dtype="<i2", mode="r")
    language = config.language
    for number, first, end in config.pieces:
        samples = recording[first:end].astype(np.float32) / _FULL_SCALE
        offset = first / SAMPLE_RATE
        found, spoken = engine.transcribe(samples, language)
        segments = []
        for item in spoken:
            segments.append([round(offset + item.start, 2), round(offset + item.end, 2), item.text])
            events.emit("spoken", seconds=segments[-1][1])
        if segments:
            language = language or found
        events.emit("piece", number=number, language=found if segments else None, segments=segments)
        events.emit("spoken", seconds=end / SAMPLE_RATE)
    events.emit("complete", status="success")


if __name__ == "__main__":
    sys.exit(process.run(TranscribeConfig, transcribe))
