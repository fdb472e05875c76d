"""What speech becomes: pieces of text with the times at which they are said."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A few words; `start` and `end` in seconds from the beginning of the recording."""

    start: float
    end: float
    text: str
