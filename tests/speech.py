"""Speech that is known to the word: said by espeak-ng, and how far a transcript is from it."""

import ctypes
import re
import wave
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import espeakng_loader

RATE = 22_050
TEXT = (
    "Water boils when it is hot enough. The steam rises and moves the wheel of the machine. "
    "A second machine makes electricity from the movement. After that the water is cold again and goes back to the "
    "beginning."
)
_SYNCHRONOUS, _UTF8 = 2, 1
_RATE_PARAMETER = 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@lru_cache(maxsize=1)
def _library() -> tuple[Any, bytearray, Any]:
    """The library, the samples that it hands over, and the callback, which must live as long."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
    assert rate == RATE
    samples = bytearray()

    @_Callback
    def take(data: Any, count: int, _: Any) -> int:
        if data and count > 0:
            samples.extend(ctypes.string_at(data, 2 * count))
        return 0

    library.espeak_SetSynthCallback(take)
    return library, samples, take


@lru_cache(maxsize=32)
def say(text: str, voice: str = "en-us+m3", *, words_per_minute: int = 140) -> bytes:
    """Samples (signed 16-bit, mono, at RATE) of a voice that reads a text."""
    library, samples, _ = _library()
    samples.clear()
    assert library.espeak_SetVoiceByName(voice.encode()) == 0
    library.espeak_SetParameter(_RATE_PARAMETER, words_per_minute, 0)
    data = text.encode() + b"\0"
    assert library.espeak_Synth(data, len(data), 0, 0, 0, _UTF8, None, None) == 0
    library.espeak_Synchronize()
    return bytes(samples)


def silence(seconds: float) -> bytes:
    return bytes(2 * int(RATE * seconds))


def write_wav(path: Path, samples: bytes) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples)
    return path


def word_error_rate(said: str, heard: str) -> float:
    """Words to insert, delete or replace, as a share of the words that were said (Levenshtein)."""
    wanted, found = _words(said), _words(heard)
    row = list(range(len(found) + 1))
    for number, word in enumerate(wanted, 1):
        previous, row[0] = row[0], number
        for place, other in enumerate(found, 1):
            previous, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, previous + (word != other))
    return row[-1] / len(wanted)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def at_16_khz(samples: bytes) -> bytes:
    """The same sound at the rate that Whisper hears."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
    frame = av.AudioFrame(format="s16", layout="mono", samples=len(samples) // 2)
    frame.planes[0].update(samples.ljust(frame.planes[0].buffer_size, b"\0"))
    frame.rate = RATE
    resampled = [*resampler.resample(frame), *resampler.resample(None)]
    return b"".join(bytes(part.planes[0])[: 2 * part.samples] for part in resampled)
