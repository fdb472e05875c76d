"""A recording in any common form to raw samples, decoded by a child that may fail, hang or swell without harm."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backend.contents.extraction import ExtractionError, run_confined
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.transcription.errors import AudioBroken, AudioTooLong

log = logging.getLogger(__name__)

SAMPLE_RATE: Final = 16_000
SAMPLE_BYTES: Final = 2
# A minute of sound is decoded in some 0.2 s; the slowest machine gets fifty times that.
_SECONDS_PER_MINUTE: Final = 10.0
_MEMORY_BYTES: Final = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Samples:
    """Signed 16-bit samples, mono, at 16 kHz, little-endian, in a file."""

    path: Path
    count: int

    @property
    def seconds(self) -> float:
        return self.count / SAMPLE_RATE


async def decode(source: Path, destination: Path, *, mime_type: str, max_minutes: int) -> Samples:
    """Decodes the first sound track of `source` into `destination`, in bounded memory.

    Raises AudioBroken, AudioTooLong. On cancellation the child is killed before the cancellation goes on.
    """
    seconds = 60 + max_minutes * _SECONDS_PER_MINUTE
    limits = ExtractionLimits(
        memory_bytes=_MEMORY_BYTES,
        cpu_seconds=int(seconds),
        step_cpu_seconds=_SECONDS_PER_MINUTE,
        timeout_seconds=seconds,
        # One second more than allowed shows that it is too long.
        output_bytes=(60 * max_minutes + 2) * SAMPLE_RATE * SAMPLE_BYTES,
    )
    destination.touch(mode=0o600)
    try:
        report = await run_confined("backend.contents.transcription", source, destination, mime_type, limits)
    except ExtractionError as error:
        log.warning("the decoder of a recording was ended: %s", error.code)
        raise AudioBroken() from error
    if report.get("too_long"):
        raise AudioTooLong(limit_minutes=max_minutes)
    count = report.get("samples")
    if not isinstance(count, int) or destination.stat().st_size != count * SAMPLE_BYTES:
        raise AudioBroken()
    return Samples(destination, count)
