"""On which page of the document a sentence of a chunk stands."""

from backend.datasets.strategies.base import ChunkText
from backend.datasets.strategies.sentences import squeeze


def page_of(chunk: ChunkText, quote: str) -> int | None:
    """Page of the quote. A chunk that spans pages has no marks between them, so the place in it decides."""
    first, last = chunk.page_start, chunk.page_end
    if first is None or last is None or last <= first:
        return first
    text = squeeze(chunk.text)
    start = text.find(squeeze(quote))
    if start < 0:
        return first
    return first + min(last - first, int((last - first + 1) * start / max(1, len(text))))
