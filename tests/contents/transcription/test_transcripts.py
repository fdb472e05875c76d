"""Paragraphs with their times, their stored form, and WebVTT."""

from pathlib import Path

from backend.contents.blocks import Block, read_blocks
from backend.contents.chunking import ApproximateTokenCounter, chunk
from backend.contents.transcription.transcripts import (
    Transcript,
    blocks_of,
    text_of,
    text_of_stored,
    write_text,
    write_vtt,
)
from backend.providers.speech.base import Segment


def lines(*texts: str, seconds: float = 3.0, pause: float = 0.2) -> list[Segment]:
    step = seconds + pause
    return [Segment(number * step, number * step + seconds, text) for number, text in enumerate(texts)]


def transcript(segments: list[Segment]) -> Transcript:
    return Transcript(segments, "en", "whisper", segments[-1].end)


def test_a_paragraph_ends_at_a_pause_or_with_a_sentence_when_it_is_long() -> None:
    sentence = "The keeper of the lighthouse climbs the stairs each evening and lights the lamp."
    blocks = list(blocks_of(lines(*[sentence] * 10)))
    assert len(blocks) == 3 and all(block.text.endswith("lamp.") for block in blocks)
    assert blocks[0].seconds == (0.0, 12.6) and blocks[1].seconds == (12.8, 25.4)
    # Captions without full stops are cut all the same.
    endless = list(blocks_of(lines(*["and then the keeper climbs up the stairs again"] * 40)))
    assert len(endless) > 3 and all(len(block.text) < 600 for block in endless)
    two = [Segment(0, 1, "One."), Segment(3.5, 4, "Two.")]
    assert [block.text for block in blocks_of(two)] == ["One.", "Two."]


def test_nothing_is_lost_or_said_twice() -> None:
    segments = lines(*[f"Word number {number}" + ("." if number % 7 == 0 else "") for number in range(300)])
    joined = " ".join(block.text for block in blocks_of(segments))
    assert joined == " ".join(segment.text for segment in segments)
    assert list(blocks_of([Segment(0, 1, " \u200b "), Segment(1, 2, "")])) == []


def test_the_stored_form_keeps_the_times(tmp_path: Path) -> None:
    found = transcript(lines(*["The lamp is lit every evening by its keeper."] * 30))
    summary = write_text(found, tmp_path / "text.jsonl")
    with (tmp_path / "text.jsonl").open("rb") as file:
        blocks = list(read_blocks(file))
    assert blocks == list(blocks_of(found.segments))
    assert (summary.block_count, summary.character_count) == (len(blocks), sum(len(block.text) for block in blocks))
    assert text_of_stored((tmp_path / "text.jsonl").read_bytes()) == text_of(found)


def test_chunks_say_from_when_to_when(tmp_path: Path) -> None:
    blocks = list(blocks_of(lines(*["The lamp is lit every evening by its keeper."] * 60)))
    drafts = list(chunk(blocks, ApproximateTokenCounter(), chunk_size_tokens=100, chunk_overlap_tokens=10))
    times = [(draft.metadata["start_seconds"], draft.metadata["end_seconds"]) for draft in drafts]
    assert len(times) > 3 and times == sorted(times)
    assert (times[0][0], times[-1][1]) == (blocks[0].seconds[0], blocks[-1].seconds[1])  # type: ignore[index]
    assert all(0 < end - start < 70 for start, end in times)
    # One sentence that is longer than a chunk keeps its times in all parts.
    long = Block("paragraph", "lamp " * 400, seconds=(5.0, 9.0))
    parts = list(chunk([long], ApproximateTokenCounter(), chunk_size_tokens=64, chunk_overlap_tokens=0))
    assert len(parts) > 3
    assert {(part.metadata["start_seconds"], part.metadata["end_seconds"]) for part in parts} == {(5.0, 9.0)}
    [plain] = chunk([Block("paragraph", "No speech at all.")], ApproximateTokenCounter())
    assert "start_seconds" not in plain.metadata


def test_webvtt_is_what_a_player_reads(tmp_path: Path) -> None:
    segments = [Segment(0, 1.5, "One --> two\nthree"), Segment(3725.0004, 3726.9996, "Late")]
    write_vtt(transcript(segments), tmp_path / "v.vtt")
    assert (tmp_path / "v.vtt").read_text() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nOne -> two three\n\n01:02:05.000 --> 01:02:07.000\nLate\n"
    )
