"""Audio and video by their first bytes, against files that PyAV makes, and files that only look like them."""

import io
from pathlib import Path

import av
import pytest

from backend.contents.media import TYPE_OF_MEDIA, media_type
from backend.contents.sniffing import sniff


def encoded(container: str, codec: str, seconds: float = 1.0) -> bytes:
    """A file of silence."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        rate = 48_000 if codec == "libopus" else 44_100
        stream = file.add_stream(codec, rate=rate, layout="mono")
        size = stream.codec_context.frame_size or 1024
        for number in range(int(seconds * rate / size)):
            frame = av.AudioFrame(format=stream.codec_context.format.name, layout="mono", samples=size)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.rate, frame.pts = rate, number * size
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "codec", "expected"),
    [
        ("wav", "pcm_s16le", "audio/wav"),
        ("mp3", "libmp3lame", "audio/mpeg"),
        ("ipod", "aac", "audio/mp4"),
        ("mp4", "aac", "video/mp4"),
        ("ogg", "libopus", "audio/ogg"),
        ("flac", "flac", "audio/flac"),
        ("webm", "libopus", "video/webm"),
    ],
)
def test_files_as_they_are_made(container: str, codec: str, expected: str, tmp_path: Path) -> None:
    data = encoded(container, codec)
    assert media_type(data[:65_536]) == expected
    assert expected in TYPE_OF_MEDIA
    path = tmp_path / "file"
    path.write_bytes(data)
    for name in ("speech.txt", "speech.pdf", "speech"):
        assert sniff(path, name) == expected


def test_an_mp3_without_a_tag_is_known_by_its_frames() -> None:
    data = encoded("mp3", "libmp3lame")
    start = data.index(b"\xff\xfb")
    assert media_type(data[start : start + 65_536]) == "audio/mpeg"
    assert media_type(data[start : start + 100]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ID3 is the name of a tag that music files have.",
        b"OggS begins such a file, says this text.",
        b"fLaC begins such a file, says this text.",
        b"RIFF____AVI LIST",
        b"abcdftypisom is no box, says this text.",
        b"\x00\x00\x00\x18ftypheic" + bytes(50),
        b"\x1a\x45\xdf\xa3 matroska, but not of the web",
        b"\xff\xfb" + b"\x00" * 5000,
        b"\xff\xfe<\x00h\x00t\x00m\x00l\x00>\x00" + b"a\x00" * 2000,
        b"\xff\xd8\xff\xe0" + bytes(2000),
        b"%PDF-1.7",
        b"PK\x03\x04",
    ],
)
def test_what_only_looks_like_it(data: bytes) -> None:
    assert media_type(data) is None
