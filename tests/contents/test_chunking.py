"""Chunks: sizes, boundaries, overlap, headings and pages."""

import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from backend.contents.blocks import Block
from backend.contents.chunking import (
    ApproximateTokenCounter,
    ChunkDraft,
    HuggingFaceTokenCounter,
    TokenCounter,
    chunk,
)
from backend.contents.extraction import extract
from tests.contents import corpus

SAMPLE = Path(__file__).parents[2] / "examples" / "quillon-40.md"


class WordCounter:
    """One token a word."""

    def count_many(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]


class ClumpingCounter:
    """Counts that do not add up: a text costs its characters in threes, and one more for each line feed."""

    def count_many(self, texts: list[str]) -> list[int]:
        return [-(-len(text) // 3) + 3 * text.count("\n\n") for text in texts]


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1_000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train([str(SAMPLE)], trainer)
    # A file may ask for this; counts must not obey.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def cut(blocks: list[Block], size: int, overlap: int, counter: TokenCounter | None = None) -> list[ChunkDraft]:
    return list(chunk(blocks, counter or WordCounter(), chunk_size_tokens=size, chunk_overlap_tokens=overlap))


def paragraph(*sentences: str, page: int | None = None) -> Block:
    return Block("paragraph", " ".join(sentences), page=page)


def test_sentences_are_kept_whole_and_overlap() -> None:
    sentences = [f"Sentence number {number} is here." for number in range(6)]
    drafts = cut([paragraph(*sentences)], 15, 5)
    assert [draft.content for draft in drafts] == [
        " ".join(sentences[0:3]),
        " ".join(sentences[2:5]),
        " ".join(sentences[4:6]),
    ]
    assert [draft.token_count for draft in drafts] == [15, 15, 10]
    assert [draft.index for draft in drafts] == [0, 1, 2]


def test_no_overlap_across_sections() -> None:
    blocks = [
        Block("heading", "One", 1, 1),
        paragraph("First sentence of one.", "Second sentence of one.", page=1),
        Block("heading", "Two", 1, 2),
        paragraph("First sentence of two.", page=2),
    ]
    drafts = cut(blocks, 12, 6)
    assert [draft.content for draft in drafts] == [
        "One\n\nFirst sentence of one. Second sentence of one.",
        "Two\n\nFirst sentence of two.",
    ]
    assert [draft.metadata for draft in drafts] == [
        {"page_start": 1, "page_end": 1, "headings": ["One"]},
        {"page_start": 2, "page_end": 2, "headings": ["Two"]},
    ]


def test_small_sections_share_a_chunk_and_headings_nest() -> None:
    blocks = [
        Block("heading", "Book", 1),
        Block("heading", "Part", 2),
        paragraph("A short text."),
        Block("heading", "Other part", 2),
        paragraph("More of it.", "And so on and on and on."),
    ]
    drafts = cut(blocks, 16, 4)
    assert [draft.metadata["headings"] for draft in drafts] == [["Book"], ["Book", "Other part"]]
    assert drafts[0].content == "Book\n\nPart\n\nA short text.\n\nOther part\n\nMore of it."
    assert drafts[1].content == "More of it. And so on and on and on."
    assert drafts[0].metadata["page_start"] is None


def test_a_heading_is_never_the_end_of_a_chunk() -> None:
    blocks = [
        paragraph("One two three four five six."),
        Block("heading", "Seven", 1),
        paragraph("Eight nine ten eleven twelve."),
    ]
    drafts = cut(blocks, 8, 0)
    assert [draft.content for draft in drafts] == [
        "One two three four five six.",
        "Seven\n\nEight nine ten eleven twelve.",
    ]


def test_rows_and_code_lines_are_kept_whole() -> None:
    blocks = [Block("table", "a | b\nc | d\ne | f"), Block("code", "def f():\n    return 1")]
    assert [draft.content for draft in cut(blocks, 100, 0)] == ["a | b\nc | d\ne | f\n\ndef f():\n    return 1"]
    assert [draft.content for draft in cut(blocks, 6, 0)] == ["a | b\nc | d", "e | f\n\ndef f():", "    return 1"]


def test_list_items_stand_on_their_own_lines() -> None:
    blocks = [Block("list_item", "- one", 1), Block("list_item", "- two", 1), paragraph("End.")]
    assert cut(blocks, 100, 0)[0].content == "- one\n- two\n\nEnd."


def test_an_overlong_sentence_is_cut_between_words() -> None:
    drafts = cut([paragraph(" ".join(f"w{number}" for number in range(25)) + ".")], 10, 0)
    assert [draft.token_count for draft in drafts] == [10, 10, 5]
    assert " ".join(draft.content for draft in drafts).split() == [f"w{n}" for n in range(24)] + ["w24."]


def test_an_overlong_word_is_cut() -> None:
    drafts = cut([paragraph("x" * 10_000)], 50, 0, ApproximateTokenCounter())
    assert max(draft.token_count for draft in drafts) <= 50
    assert "".join("".join(draft.content.split()) for draft in drafts) == "x" * 10_000


@pytest.mark.parametrize(("size", "overlap"), [(10, 10), (10, 11), (10, -1), (0, 0), (-5, -6)])
def test_sizes_are_validated(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="chunk_overlap_tokens"):
        cut([paragraph("Text.")], size, overlap)


def test_nothing_gives_nothing() -> None:
    assert cut([], 10, 0) == []
    assert cut([paragraph("  ")], 10, 0) == []


def test_counts_of_a_tokenizer_are_whole(tokenizer_json: Path) -> None:
    counter = HuggingFaceTokenCounter(tokenizer_json)
    long, short = counter.count_many(["The hopper of the Quillon 40 holds 22 litres of loose sawdust.", "x"])
    assert long > 8
    assert short == 1
    assert counter.count_many([]) == []


async def test_the_sample_with_a_real_tokenizer(tokenizer_json: Path) -> None:
    document = await extract(SAMPLE, corpus.MARKDOWN)
    counter = HuggingFaceTokenCounter(tokenizer_json)
    drafts = cut(document.blocks, 256, 40, counter)
    assert all(draft.token_count <= 256 for draft in drafts)
    assert [draft.token_count for draft in drafts] == counter.count_many([draft.content for draft in drafts])
    assert all(draft.metadata["headings"][0] == "Quillon 40 Briquette Press" for draft in drafts)
    assert sum(draft.token_count for draft in drafts) / len(drafts) > 128


# (kind, level, words of each sentence): every word is made unique, so that a repetition is known for one.
SHAPES = st.lists(
    st.tuples(
        st.sampled_from(["heading", "paragraph", "list_item", "table", "code"]),
        st.integers(1, 3),
        st.lists(st.integers(1, 14), min_size=1, max_size=5),
    ),
    max_size=12,
)
COUNTERS = st.sampled_from([WordCounter(), ClumpingCounter(), ApproximateTokenCounter()])


def build(shapes: list[tuple[str, int, list[int]]]) -> tuple[list[Block], list[str]]:
    """Blocks of these shapes, and all their words; each sentence starts with `W` and ends with a full stop."""
    words: list[str] = []
    blocks: list[Block] = []
    for kind, level, lengths in shapes:
        sentences = []
        for length in lengths[:1] if kind == "heading" else lengths:
            sentence = [f"w{len(words) + index}" for index in range(length)]
            sentence[0] = sentence[0].upper()
            sentence[-1] += "" if kind == "heading" else "."
            words += sentence
            sentences.append(" ".join(sentence))
        separator = "\n" if kind in {"table", "code"} else " "
        blocks.append(Block(kind, separator.join(sentences), level if kind == "heading" else 0))  # type: ignore[arg-type]
    return blocks, words


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.integers(8, 60), st.integers(0, 30), COUNTERS)
def test_nothing_is_lost_nothing_is_too_long(
    shapes: list[tuple[str, int, list[int]]], size: int, overlap: int, counter: TokenCounter
) -> None:
    overlap = min(overlap, size - 1)
    blocks, words = build(shapes)
    drafts = cut(blocks, size, overlap, counter)
    assert drafts == cut(blocks, size, overlap, counter)
    assert [draft.index for draft in drafts] == list(range(len(drafts)))
    seen: list[str] = []
    for draft in drafts:
        assert [draft.token_count] == counter.count_many([draft.content])
        assert draft.token_count <= size
        assert draft.content == draft.content.strip()
        repeated, new = divided(draft, seen)
        # What is repeated ends what came before, whole sentences of it; and each chunk brings something new.
        assert seen[len(seen) - len(repeated) :] == repeated
        assert not repeated or repeated[0].startswith("W")
        assert new
        seen += new
    assert seen == words


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(10, 40), st.integers(0, 9))
def test_overlap_keeps_its_budget_and_its_section(
    shapes: list[tuple[str, int, list[int]]], size: int, overlap: int
) -> None:
    blocks, _ = build(shapes)
    starts = {block.text.split()[0] for block in blocks if block.kind == "heading"}
    seen: list[str] = []
    for draft in cut(blocks, size, overlap):
        repeated, new = divided(draft, seen)
        assert len(repeated) <= overlap
        if repeated:
            assert new[0] not in starts, "a new section begins without repetition"
            assert not starts.intersection(repeated)
        seen += new


def divided(draft: ChunkDraft, seen: list[str]) -> tuple[list[str], list[str]]:
    """The words of a chunk that were there before, and those that were not."""
    known = set(seen)
    words = draft.content.split()
    first_new = next((index for index, word in enumerate(words) if word not in known), len(words))
    return words[:first_new], words[first_new:]


def test_a_chunk_tells_where_its_pages_begin() -> None:
    blocks = [
        Block("heading", "Care", 1, 3),
        paragraph("Page three has this.", "And this.", page=3),
        paragraph("Page four has that.", page=4),
        Block("table", "a | b\nc | d", page=5),
    ]
    (draft,) = cut(blocks, 100, 0)
    assert draft.metadata["page_starts"] == [
        [0, 3],
        [draft.content.index("Page four"), 4],
        [draft.content.index("a | b"), 5],
    ]
    first, *_, last = cut(blocks, 8, 0)
    assert "page_starts" not in first.metadata
    assert last.metadata["page_start"] == last.metadata["page_end"] == 5


def test_pages_of_repeated_sentences_are_told() -> None:
    blocks = [paragraph("One two three. Four five.", page=1), paragraph("Six seven eight.", page=2)]
    drafts = cut(blocks, 5, 3)
    assert [draft.content for draft in drafts] == ["One two three. Four five.", "Four five.\n\nSix seven eight."]
    assert drafts[1].metadata["page_starts"] == [[0, 1], [12, 2]]


PROSE = [
    paragraph(
        *[f"Sentence {number}-{index} tells of the {number * index % 97} cups." for index in range(number % 5 + 1)]
    )
    for number in range(400)
]


@pytest.mark.parametrize("overlap", [0, 20])
@pytest.mark.parametrize("place", [0, 200])
def test_an_edit_changes_only_the_chunks_near_it(overlap: int, place: int) -> None:
    before = [draft.content for draft in cut(PROSE, 128, overlap)]
    inserted = paragraph("Here is something new.", "It has two sentences.")
    after = {draft.content for draft in cut([*PROSE[:place], inserted, *PROSE[place:]], 128, overlap)}
    # Without headings nothing but the text itself brings the two versions together again.
    assert len(before) > 50
    assert sum(content not in after for content in before) <= 6


def test_a_full_chunk_ends_with_its_paragraph_where_one_ends_near() -> None:
    long, short = "One two three four five six seven eight.", "Nine ten."
    drafts = cut([paragraph(long), paragraph(short, short, long)], 10, 0)
    assert [draft.content for draft in drafts] == [long, f"{short} {short}", long]


@pytest.mark.parametrize("overlap", [0, 5, 30, 31])
def test_an_overlap_of_almost_a_chunk_still_goes_on(overlap: int) -> None:
    drafts = cut(PROSE[:60], 32, overlap)
    assert max(draft.token_count for draft in drafts) <= 32
    assert len(drafts) < 300
    text = " ".join(draft.content for draft in drafts)
    assert all(f"Sentence {number}-{number % 5} " in text for number in range(60))


def test_only_headings() -> None:
    drafts = cut([Block("heading", f"Heading {number}", 1 + number % 3) for number in range(10)], 8, 2)
    assert "\n\n".join(draft.content for draft in drafts) == "\n\n".join(f"Heading {number}" for number in range(10))
    assert cut([Block("heading", " ", 1)], 8, 2) == []


@pytest.mark.parametrize(
    "text",
    [
        "这是一个没有空格的句子" * 300,
        "กำลังทดสอบ" * 300,
        "e\u0301" * 3_000,
        "\u0301" * 3_000,
    ],
)
@pytest.mark.parametrize("counter", [ApproximateTokenCounter(), ClumpingCounter()])
def test_writing_without_spaces_gets_none(text: str, counter: TokenCounter) -> None:
    drafts = cut([paragraph(text)], 64, 8, counter)
    assert max(draft.token_count for draft in drafts) <= 64
    assert "".join(draft.content for draft in drafts) == text
    if not text.startswith("\u0301"):
        assert not any(draft.content.startswith("\u0301") for draft in drafts)


@pytest.mark.parametrize("unit", ["word ", "x", "这", "a. ", "A b\n", "word\t"])
def test_megabytes_in_one_block_stay_linear(unit: str, tokenizer_json: Path) -> None:
    def seconds(length: int) -> float:
        started = time.process_time()
        blocks = [paragraph(unit * (length // len(unit.encode())))]
        total = sum(1 for _ in chunk(blocks, HuggingFaceTokenCounter(tokenizer_json), chunk_overlap_tokens=50))
        assert total > length / 512 / 16
        return time.process_time() - started

    small = seconds(150_000)
    assert seconds(1_500_000) < 25 * max(small, 0.1)


def test_chunking_streams() -> None:
    def endless() -> Iterator[Block]:
        for number in range(20_000):
            yield paragraph(f"Sentence {number} says something about a machine.", page=number)

    tracemalloc.start()
    total = sum(1 for _ in chunk(endless(), WordCounter(), chunk_size_tokens=64, chunk_overlap_tokens=8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 2_000
    assert peak < 3_000_000
