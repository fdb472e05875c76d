"""Decoding in bounded memory, and cuts in the pauses of a long recording."""

import json
import subprocess
import sys
import wave
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from backend.contents.transcription.decoding import SAMPLE_RATE, Samples, decode
from backend.contents.transcription.errors import AudioBroken, AudioTooLong
from backend.contents.transcription.pieces import PIECE_SECONDS, cut
from tests.contents.test_media import encoded
from tests.speech import RATE, TEXT, say, silence, write_wav


async def test_every_container_becomes_the_same_samples(tmp_path: Path) -> None:
    for container, codec in (("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("mp4", "aac"), ("webm", "libopus")):
        source = tmp_path / f"sound.{container}"
        source.write_bytes(encoded(container, codec, seconds=3.0))
        samples = await decode(source, tmp_path / f"{container}.raw", mime_type="audio/x", max_minutes=5)
        assert abs(samples.seconds - 3.0) < 0.15, container
        assert samples.path.stat().st_size == 2 * samples.count


async def test_resampling_keeps_the_sound(tmp_path: Path) -> None:
    said = say(TEXT)
    source = write_wav(tmp_path / "speech.wav", said)
    samples = await decode(source, tmp_path / "raw", mime_type="audio/wav", max_minutes=5)
    assert abs(samples.seconds - len(said) / 2 / RATE) < 0.05
    before = np.abs(np.frombuffer(said, "<i2").astype(float)).mean()
    after = np.abs(np.fromfile(samples.path, "<i2").astype(float)).mean()
    assert 0.9 < after / before < 1.1


@pytest.mark.parametrize(
    "data", [b"", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"ID3\x04" + bytes(2000), b"\x00\x00\x00\x18ftypM4A " + b"x" * 5000]
)
async def test_what_is_no_sound_is_broken(tmp_path: Path, data: bytes) -> None:
    source = tmp_path / "broken"
    source.write_bytes(data)
    with pytest.raises(AudioBroken):
        await decode(source, tmp_path / "raw", mime_type="audio/wav", max_minutes=5)


async def test_a_file_that_was_cut_off_gives_what_is_there(tmp_path: Path) -> None:
    whole = encoded("mp3", "libmp3lame", seconds=10.0)
    source = tmp_path / "cut.mp3"
    source.write_bytes(whole[: len(whole) // 2] + b"\xff" * 300)
    samples = await decode(source, tmp_path / "raw", mime_type="audio/mpeg", max_minutes=5)
    assert 4.5 < samples.seconds < 5.5


async def test_more_than_is_allowed_is_refused(tmp_path: Path) -> None:
    source = write_wav(tmp_path / "long.wav", silence(63))
    with pytest.raises(AudioTooLong):
        await decode(source, tmp_path / "raw", mime_type="audio/wav", max_minutes=1)
    source = write_wav(tmp_path / "short.wav", silence(60))
    assert (await decode(source, tmp_path / "raw2", mime_type="audio/wav", max_minutes=1)).seconds == 60


async def test_an_address_inside_a_file_is_not_followed(tmp_path: Path) -> None:
    """FFmpeg reads playlists, which name other files and servers."""
    secret = write_wav(tmp_path / "secret.wav", say(TEXT))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile '{secret}'\n"
    for text in (playlist, concat):
        source = tmp_path / "list.m3u8"
        source.write_text(text)
        with pytest.raises(AudioBroken):
            await decode(source, tmp_path / "raw", mime_type="audio/wav", max_minutes=5)


def recording(path: Path, *parts: tuple[float, bool]) -> Samples:
    """Noise and silence, in turn as told: (seconds, is noise)."""
    generator = np.random.default_rng(1)
    with path.open("wb") as file:
        for seconds, is_noise in parts:
            size = int(seconds * SAMPLE_RATE)
            data = generator.normal(0, 3000, size) if is_noise else np.zeros(size)
            file.write(data.astype("<i2").tobytes())
    return Samples(path, path.stat().st_size // 2)


def test_pieces_are_cut_in_pauses_and_make_up_the_whole(tmp_path: Path) -> None:
    samples = recording(tmp_path / "raw", (100, True), (1, False), (101, True), (1, False), (130, True))
    pieces = cut(samples)
    assert [piece.number for piece in pieces] == [0, 1, 2, 3]
    assert pieces[0].start == 0 and pieces[-1].end == samples.count
    assert all(one.end == two.start for one, two in pairwise(pieces))
    assert all(0 < piece.end - piece.start <= PIECE_SECONDS * SAMPLE_RATE for piece in pieces)
    assert 100 < pieces[0].end / SAMPLE_RATE < 101
    assert 202 < pieces[1].end / SAMPLE_RATE < 203
    assert cut(samples) == pieces


def test_what_is_short_is_one_piece(tmp_path: Path) -> None:
    for seconds in (0.01, 5, PIECE_SECONDS):
        samples = recording(tmp_path / "raw", (seconds, True))
        [piece] = cut(samples)
        assert (piece.start, piece.end) == (0, samples.count)


@pytest.mark.slow
def test_three_hours_are_decoded_and_cut_in_little_memory(tmp_path: Path) -> None:
    """In a process of its own, whose peak is its own. Three hours are 345 MB of samples."""
    source = tmp_path / "long.wav"
    with wave.open(str(source), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        for _ in range(3 * 60):
            file.writeframesraw(bytes([128]) * 60 * 8000)
    program = (
        "import asyncio, json, resource, sys\n"
        "from pathlib import Path\n"
        "from backend.contents.transcription.decoding import decode\n"
        "from backend.contents.transcription.pieces import cut\n"
        "samples = asyncio.run(decode(Path(sys.argv[1]), Path(sys.argv[2]), mime_type='x', max_minutes=240))\n"
        "pieces = cut(samples)\n"
        "status = Path('/proc/self/status').read_text()\n"
        "own = int(status.split('VmHWM:')[1].split()[0])\n"
        "child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(json.dumps([samples.seconds, len(pieces), own, child]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "raw")], capture_output=True, text=True, check=True
    )
    seconds, pieces, own, child = json.loads(done.stdout)
    assert abs(seconds - 3 * 3600) < 1 and pieces >= 90
    # KB. The quarter of the file that the cuts read counts as memory as long as it is mapped.
    assert child < 120_000, f"the decoder: {child} KB"
    assert own < 250_000, f"the cuts: {own} KB"
