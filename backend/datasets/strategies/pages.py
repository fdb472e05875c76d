"""On which page of the document a sentence of a chunk stands."""

import re

from backend.datasets.strategies.base import ChunkText


def page_of(chunk: ChunkText, quote: str) -> int | None:
    """Page on which the quote begins, white space aside.

    A chunk without marks between its pages, as older ones are, leaves the place in it to decide. A quote that is not
    in the chunk has the chunk's first page.
    """
    first, last = chunk.page_start, chunk.page_end
    if first is None or last is None or last <= first:
        return first
    found = re.search(r"\s+".join(map(re.escape, quote.split())), chunk.text)
    if found is None:
        return first
    if chunk.page_starts:
        return max((start for start in chunk.page_starts if start[0] <= found.start()), default=(0, first))[1]
    return first + min(last - first, (last - first + 1) * found.start() // max(1, len(chunk.text)))
