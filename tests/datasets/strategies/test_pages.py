"""The page of a quote."""

import pytest

from backend.contents.blocks import Block
from backend.contents.chunking import ApproximateTokenCounter, chunk
from backend.datasets.strategies.base import ChunkText
from backend.datasets.strategies.pages import page_of

SENTENCES = {
    "Page three is short.": 3,
    "Page four goes on for a long while, with many words, so that places in the text mislead.": 4,
    "So does page four again.": 4,
    "Page six ends it.": 6,
}


def chunk_text() -> ChunkText:
    """A chunk as the job makes it, over pages of very different lengths; page five is blank."""
    blocks = [Block("paragraph", sentence, page=page) for sentence, page in SENTENCES.items()]
    (draft,) = chunk(blocks, ApproximateTokenCounter())
    meta = draft.metadata
    starts = tuple((offset, page) for offset, page in meta["page_starts"])
    return ChunkText(text=draft.content, page_start=meta["page_start"], page_end=meta["page_end"], page_starts=starts)


@pytest.mark.parametrize(("quote", "page"), SENTENCES.items())
def test_the_page_of_a_quote_is_exact(quote: str, page: int) -> None:
    assert page_of(chunk_text(), quote) == page
    assert page_of(chunk_text(), quote.replace(" ", "\n ")) == page


def test_a_quote_over_two_pages_has_the_first_and_an_unknown_one_that_of_the_chunk() -> None:
    assert page_of(chunk_text(), "So does page four again. Page six") == 4
    assert page_of(chunk_text(), "Not in the chunk.") == 3
    assert page_of(chunk_text(), "") == 3


def test_without_marks_the_place_decides() -> None:
    text = "A a a a. B b b b. C c c c. D d d d."
    assert [page_of(ChunkText(text=text, page_start=1, page_end=2), quote) for quote in ("A a a", "D d")] == [1, 2]
    assert page_of(ChunkText(text=text, page_start=7, page_end=7), "D d") == 7
    assert page_of(ChunkText(text=text), "D d") is None
