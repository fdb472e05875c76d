"""The chunkers of semchunk and chonkie, made as their documentation says, all with the same tokenizer object."""

from collections.abc import Callable
from typing import Any, cast

from chonkie import RecursiveChunker, SentenceChunker, TokenChunker
from semchunk.semchunk import chunkerify
from tokenizers import Tokenizer

Chunker = Callable[[str], list[str]]


def chunkers(tokenizer: Tokenizer, size: int, overlap: int) -> dict[str, Chunker]:
    """Name -> text to chunks; chonkie's recursive chunker knows no overlap."""
    # Both take it, and neither says so in a way that a type checker understands.
    same = cast(Any, tokenizer)
    semchunk = chunkerify(same, size)
    chonkie: dict[str, Any] = {
        "chonkie SentenceChunker": SentenceChunker(same, chunk_size=size, chunk_overlap=overlap),
        "chonkie TokenChunker": TokenChunker(same, chunk_size=size, chunk_overlap=overlap),
    }
    if not overlap:
        chonkie["chonkie RecursiveChunker"] = RecursiveChunker(same, chunk_size=size)

    def texts(chunker: Any) -> Chunker:
        return lambda text: [found.text for found in chunker.chunk(text)]

    return {
        "semchunk": lambda text: cast(list[str], semchunk(text, overlap=overlap or None)),
        **{name: texts(chunker) for name, chunker in chonkie.items()},
    }
