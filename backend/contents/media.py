"""Audio and video files by their first bytes, and what a content of theirs is called."""

from typing import Final

TYPE_OF_MEDIA: Final = {
    "audio/wav": "audio",
    "audio/mpeg": "audio",
    "audio/mp4": "audio",
    "audio/ogg": "audio",
    "audio/flac": "audio",
    "video/mp4": "video",
    "video/webm": "video",
    "video/ogg": "video",
}
_AUDIO_BRANDS = frozenset({b"M4A ", b"M4B ", b"M4P ", b"F4A "})
_VIDEO_BRANDS = frozenset(
    {b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"dash", b"M4V ", b"MSNV", b"qt  "}
)
_OGG_VIDEO = (b"\x80theora", b"fishead\0")
# Bit rates (kbit/s) and sampling rates (Hz) of MPEG layer III, by the numbers in a frame's header.
_RATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SAMPLING = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_FRAMES = 3


def media_type(head: bytes) -> str | None:
    """The MIME type of audio or video that begins with `head` (a few kilobytes), else None."""
    if head[:4] in {b"RIFF", b"RF64"} and head[8:12] == b"WAVE":
        return "audio/wav"
    if head.startswith(b"fLaC\0"):
        return "audio/flac"
    if head.startswith(b"OggS\0"):
        return "video/ogg" if any(mark in head[:512] for mark in _OGG_VIDEO) else "audio/ogg"
    if head.startswith(b"\x1a\x45\xdf\xa3") and b"webm" in head[:64]:
        return "video/webm"
    if head[:1] == b"\0" and head[4:8] == b"ftyp":
        brand = head[8:12]
        return "audio/mp4" if brand in _AUDIO_BRANDS else "video/mp4" if brand in _VIDEO_BRANDS else None
    if (head[:3] == b"ID3" and head[3:4] in {b"\2", b"\3", b"\4"}) or _is_mp3(head):
        return "audio/mpeg"
    return None


def _is_mp3(head: bytes) -> bool:
    """Frames that follow each other: two bytes alone would make music of any file."""
    at = 0
    for _ in range(_FRAMES):
        length = _frame_bytes(head[at : at + 4])
        if length is None:
            return False
        at += length
    return True


def _frame_bytes(header: bytes) -> int | None:
    """The length of a frame of layer III with this header (ISO/IEC 11172-3, 2.4.1.3), else None."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, rate, sampling = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version not in _SAMPLING or rate in {0, 15} or sampling == 3:
        return None
    first = version == 3
    kilobits = (_RATES_1 if first else _RATES_2)[rate]
    padding = header[2] >> 1 & 1
    return (144 if first else 72) * kilobits * 1000 // _SAMPLING[version][sampling] + padding
