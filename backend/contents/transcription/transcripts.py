"""What was said, and when: as the blocks of a document, and as WebVTT for people and players."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from backend.contents.blocks import Block, DocumentSummary, read_blocks
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.parsers.writer import clean, write_document
from backend.providers.speech.base import Segment
from backend.providers.youtube.captions import Captions

CAPTIONS_SOURCE: Final = "youtube_transcript_api"
SPEECH_SOURCE: Final = "whisper"
VTT: Final = "text/vtt"
# A paragraph ends at a pause, or with a sentence once it is long enough; captions may have no full stops at all.
_PAUSE_SECONDS: Final = 2.0
_LONG_ENOUGH: Final = 250
_LONGEST: Final = 500
_SENTENCE_ENDS: Final = tuple(".!?…。！？")


@dataclass(frozen=True, slots=True)
class Transcript:
    """`source` says where it came from; `language` is ISO 639-1 or None; `title` is a video's."""

    segments: Sequence[Segment]
    language: str | None
    source: str
    duration_seconds: float
    title: str | None = None

    def meta(self) -> dict[str, Any]:
        """What a content keeps of it beside the text."""
        found = {
            "source": self.source,
            "duration_seconds": round(self.duration_seconds, 1),
            "language": self.language,
            "title": self.title,
        }
        return {name: value for name, value in found.items() if value is not None}


def transcript_of(captions: Captions) -> Transcript:
    """What YouTube's captions say."""
    end = captions.segments[-1].end
    return Transcript(
        captions.segments,
        captions.language.lower().partition("-")[0],
        CAPTIONS_SOURCE,
        captions.facts.duration_seconds or end,
        captions.facts.title,
    )


def write_text(transcript: Transcript, path: Path) -> DocumentSummary:
    """Writes the stored form of a document (see `contents.blocks`), each paragraph with its times."""
    path.touch(mode=0o600)
    with path.open("r+b") as file:
        return write_document(file, blocks_of(transcript.segments), None, ExtractionLimits())


def text_of(transcript: Transcript) -> str:
    """The paragraphs, with an empty line between them."""
    return "\n\n".join(block.text for block in blocks_of(transcript.segments))


def text_of_stored(stored: bytes) -> str:
    """The same of what `write_text` wrote."""
    return "\n\n".join(block.text for block in read_blocks(BytesIO(stored)))


def blocks_of(segments: Iterable[Segment]) -> Iterator[Block]:
    """Paragraphs of a few sentences; their times are those of their first and last words."""
    held: list[Segment] = []
    length = 0
    for segment in segments:
        text = clean(segment.text)
        if not text:
            continue
        if held and _ends_before(held[-1], segment, length):
            yield _paragraph(held)
            held, length = [], 0
        held.append(Segment(segment.start, segment.end, text))
        length += len(text) + 1
    if held:
        yield _paragraph(held)


def write_vtt(transcript: Transcript, path: Path) -> None:
    """Writes a WebVTT file."""
    with path.open("w", encoding="utf-8") as file:
        file.write("WEBVTT\n")
        for segment in transcript.segments:
            # An arrow inside a cue would end it.
            text = clean(segment.text).replace("\n", " ").replace("-->", "->")
            file.write(f"\n{_clock(segment.start)} --> {_clock(segment.end)}\n{text}\n")


def _ends_before(last: Segment, following: Segment, length: int) -> bool:
    if following.start - last.end >= _PAUSE_SECONDS or length >= _LONGEST:
        return True
    return length >= _LONG_ENOUGH and last.text.endswith(_SENTENCE_ENDS)


def _paragraph(held: Sequence[Segment]) -> Block:
    seconds = (round(held[0].start, 2), round(max(held[-1].end, held[0].start), 2))
    return Block("paragraph", " ".join(segment.text for segment in held), seconds=seconds)


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
