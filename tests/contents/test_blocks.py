"""The stored form of a document."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.contents.blocks import HEADER_BYTES, Block, DocumentSummary, ExtractedDocument, read_blocks

BLOCKS = st.builds(
    Block,
    st.sampled_from(["heading", "paragraph", "list_item", "table", "code"]),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(0, 6),
    st.none() | st.integers(1, 9_999),
)


def document(blocks: list[Block]) -> ExtractedDocument:
    return ExtractedDocument(3, sum(len(block.text) for block in blocks), blocks)


@given(st.lists(BLOCKS, max_size=8))
def test_a_document_survives_storage(blocks: list[Block]) -> None:
    stored = document(blocks).to_bytes()
    assert ExtractedDocument.from_bytes(stored) == document(blocks)
    assert list(read_blocks(io.BytesIO(stored))) == blocks


def test_the_form_is_stable() -> None:
    stored = document([Block("heading", "Été\u2028", 2, 7), Block("code", "a\n\tb")]).to_bytes()
    header, *lines = stored.splitlines(keepends=True)
    assert len(header) == HEADER_BYTES
    assert header.startswith(
        b'{"format":"finetuneflow.document","version":1,"pages":3,"character_count":8,"block_count":2}'
    )
    assert b"".join(lines).decode() == (
        '{"kind":"heading","text":"Été\u2028","level":2,"page":7}\n{"kind":"code","text":"a\\n\\tb"}\n'
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"not json",
        b'{"kind":"video","text":"x"}',
        b'{"kind":"code"}',
        b'{"kind":"code","text":1}',
        b'{"kind":"code","text":"x","level":"1"}',
        b'{"kind":"code","text":"x","page":1.5}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Block.from_line(line)


def test_a_document_cut_short_is_noticed() -> None:
    stored = document([Block("paragraph", "a"), Block("paragraph", "b")]).to_bytes()
    with pytest.raises(ValueError, match="1 blocks where its header says 2"):
        ExtractedDocument.from_lines(stored.splitlines(keepends=True)[:-1])


def test_another_version_is_refused() -> None:
    header = DocumentSummary(1, 2, 3).to_line()
    with pytest.raises(ValueError, match="version 1"):
        DocumentSummary.from_line(header.replace(b'"version":1', b'"version":9'))
