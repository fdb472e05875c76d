"""Entry of the child that decodes sound: `python -m backend.contents.transcription`, see `contents.parsers.child`.

It tells how many samples (signed 16-bit, mono, 16 kHz) DESTINATION holds, `{"samples": N}`; or `{"too_long": true}`.
"""

from pathlib import Path
from typing import Any, BinaryIO

import av

from backend.contents.parsers import child
from backend.contents.parsers.confinement import start_step
from backend.contents.parsers.failures import DocumentBroken
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.transcription.decoding import SAMPLE_BYTES, SAMPLE_RATE

# Of CPU time the kernel grants a portion anew after so much sound.
_STEP_SAMPLES = 60 * SAMPLE_RATE


def decode_sound(source: Path, destination: Path, mime_type: str, limits: ExtractionLimits) -> dict[str, Any]:
    with destination.open("r+b") as file:
        child.confine(limits)
        return _decode(source, file, limits)


def _decode(source: Path, file: BinaryIO, limits: ExtractionLimits) -> dict[str, Any]:
    samples = next_step = 0
    most = limits.output_bytes // SAMPLE_BYTES - SAMPLE_RATE
    with av.open(str(source), mode="r", metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise DocumentBroken
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        for packet in container.demux(container.streams.audio[0]):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                continue  # one damaged packet is a click, not the end
            for frame in frames:
                samples += sum(_write(file, resampled) for resampled in resampler.resample(frame))
            if samples > most:
                return {"too_long": True}
            if samples > next_step:
                start_step(limits)
                next_step = samples + _STEP_SAMPLES
        if samples:
            samples += sum(_write(file, resampled) for resampled in resampler.resample(None))
    if not samples:
        raise DocumentBroken
    return {"samples": samples}


def _write(file: BinaryIO, frame: av.AudioFrame) -> int:
    """Writes a frame, whose plane may be longer than its samples; returns how many there are."""
    file.write(bytes(frame.planes[0])[: frame.samples * SAMPLE_BYTES])
    return int(frame.samples)


if __name__ == "__main__":
    child.run(decode_sound)
