"""Cuts a long recording where it is quietest, so that its pieces can be written down one by one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from backend.contents.transcription.decoding import SAMPLE_RATE, Samples

# A piece ends in its last half minute. Longer ones gain nothing: the engines hear half a minute at a time.
PIECE_SECONDS: Final = 120
_SEARCH_SECONDS: Final = 30
_FRAME: Final = SAMPLE_RATE // 50
# The pause between two sentences: what is quiet for so long.
_PAUSE_FRAMES: Final = 20


@dataclass(frozen=True, slots=True)
class Piece:
    """`start` and `end` in samples; `number` from 0."""

    number: int
    start: int
    end: int


def cut(samples: Samples) -> list[Piece]:
    """Pieces of at most two minutes that make up the whole; the same ones each time."""
    ends = list(_ends(samples))
    return [Piece(number, start, end) for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))]


def _ends(samples: Samples) -> Iterator[int]:
    recording = np.memmap(samples.path, dtype="<i2", mode="r", shape=(samples.count,))
    start, longest, search = 0, PIECE_SECONDS * SAMPLE_RATE, _SEARCH_SECONDS * SAMPLE_RATE
    while samples.count - start > longest:
        first = start + longest - search
        start = first + _quietest(recording[first : first + search])
        yield start
    yield samples.count


def _quietest(window: "np.typing.NDArray[np.int16]") -> int:
    """The middle of the quietest pause, as an offset in samples."""
    frames = window[: len(window) // _FRAME * _FRAME].reshape(-1, _FRAME).astype(np.float32)
    energy = np.convolve(np.square(frames).mean(axis=1), np.ones(_PAUSE_FRAMES), mode="valid")
    return (int(energy.argmin()) + _PAUSE_FRAMES // 2) * _FRAME
