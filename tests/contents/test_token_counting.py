"""Token counts: those of the tokenizer in every case, though words are counted once only."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from backend.contents import token_counting
from backend.contents.token_counting import ApproximateTokenCounter, HuggingFaceTokenCounter

SAMPLE = Path(__file__).parents[2] / "examples" / "quillon-40.md"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level() -> Tokenizer:
    """As GPT-2, SmolLM and StarCoder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return trained(tokenizer, trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def split_by_pattern() -> Tokenizer:
    """As Llama 3 and Qwen: a full stop and the line feeds behind it are one word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return trained(tokenizer, trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def metaspace() -> Tokenizer:
    """As T5: a text begins with a space, whether it has one or not."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return trained(tokenizer, trainers.BpeTrainer, special_tokens=["<unk>"])


def prepended() -> Tokenizer:
    """As Llama 2 and Mistral: a space is put before a text even if there is one, and nothing is split."""
    tokenizer = metaspace()
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return tokenizer


def word_pieces() -> Tokenizer:
    """As BERT: white space counts for nothing."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(tokenizer, trainers.WordPieceTrainer, special_tokens=["[UNK]", "[MASK]"])


def across_words() -> Tokenizer:
    """Without any rule that parts words: tokens span spaces."""
    tokenizer = Tokenizer(models.BPE())
    return trained(tokenizer, trainers.BpeTrainer)


def with_greedy_mark() -> Tokenizer:
    """With a special token that swallows the spaces around it."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    return tokenizer


def trained(tokenizer: Tokenizer, trainer: Callable[..., trainers.Trainer], **options: object) -> Tokenizer:
    tokenizer.train([str(SAMPLE)], trainer(vocab_size=1_500, show_progress=False, **options))
    return tokenizer


KINDS = {
    "byte_level": (byte_level, " "),
    "split_by_pattern": (split_by_pattern, " "),
    "metaspace": (metaspace, " "),
    "prepended": (prepended, ""),
    "word_pieces": (word_pieces, " "),
    "across_words": (across_words, None),
    "with_greedy_mark": (with_greedy_mark, None),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, HuggingFaceTokenCounter]]:
    made = {}
    for kind, (build, _) in KINDS.items():
        path = tmp_path_factory.mktemp(kind) / "tokenizer.json"
        tokenizer = build()
        tokenizer.save(str(path))
        made[kind] = (tokenizer, HuggingFaceTokenCounter(path))
    return made


WORDS = st.sampled_from(
    [
        "the",
        "hopper",
        "it's",
        "22",
        "mm.",
        "1,5",
        "«",
        "»",
        "L'été",
        "(a)",
        "x",
        "日本",
        "<mask>",
        "e\u0301",
        "...",
        "-",
    ]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SPACES = st.sampled_from([" "] * 8 + ["\n", "\n\n", "  ", " \n", "\t", "\n    ", "\u00a0", ""])
TEXTS = st.lists(st.tuples(WORDS, SPACES), max_size=12).map(lambda parts: "".join(map("".join, parts)))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_counts_are_those_of_the_tokenizer(
    pairs: dict[str, tuple[Tokenizer, HuggingFaceTokenCounter]], kind: str, texts: list[str]
) -> None:
    tokenizer, counter = pairs[kind]
    expected = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    assert counter.count_many(texts) == expected
    assert counter.count_many(texts) == expected, "and again from memory"


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_remembered_where_they_may_be(
    pairs: dict[str, tuple[Tokenizer, HuggingFaceTokenCounter]], kind: str
) -> None:
    assert pairs[kind][1]._lead == KINDS[kind][1]


def test_what_is_remembered_has_a_limit(
    pairs: dict[str, tuple[Tokenizer, HuggingFaceTokenCounter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, counter = pairs["byte_level"]
    monkeypatch.setattr(token_counting, "_REMEMBERED_WORDS", 500)
    texts = [" ".join(f"word{number * 7 + index}" for index in range(7)) for number in range(400)]
    for text in texts:
        assert counter.count_many([text]) == [len(tokenizer.encode(text).ids)]
        assert len(counter._inside) + len(counter._at_start) <= 500
    long = "y" * 100_000
    counter.count_many([f"a {long} b", long])
    assert long not in counter._inside
    assert long not in counter._at_start


def test_threads_may_share_a_counter(
    pairs: dict[str, tuple[Tokenizer, HuggingFaceTokenCounter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, counter = pairs["byte_level"]
    monkeypatch.setattr(token_counting, "_REMEMBERED_WORDS", 50)
    texts = [f"the cup {number} holds\n\nitem-{number} of {'long' * 20}{number % 7}" for number in range(300)]
    expected = [len(tokenizer.encode(text).ids) for text in texts]
    found: list[bool] = []

    def count() -> None:
        found.extend(
            counter.count_many(texts[start : start + 10]) == expected[start : start + 10] for start in range(0, 300, 10)
        )

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * 30
    assert all(found)


def test_the_estimate_counts_other_scripts_by_character() -> None:
    assert ApproximateTokenCounter().count_many(["", "seven letters!", "日本語", "été"]) == [0, 4, 3, 3]
