"""A tokenizer.json as the vocabulary of a GGUF file: byte-level BPE, and SentencePiece BPE with byte fallback."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from backend.trainers.errors import EXPORT_UNSUPPORTED, TrainerError

# How llama.cpp names the ways in which tokenizers split text before BPE, by the regular expression that does it.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITTERS = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2", _TEKKEN: "tekken"}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WORD_START = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF's `tokenizer.ggml.*` keys hold; `merges` are for byte-level BPE, `scores` for SentencePiece."""

    model: str
    splitter: str
    tokens: list[bytes]
    types: list[TokenType]
    merges: list[str] | None = None
    scores: list[float] | None = None
    space_prefix: bool = False


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a model folder, filled up to `size` tokens, the rows of the embedding.

    Raises TrainerError EXPORT_UNSUPPORTED, which names what llama.cpp has no counterpart for.
    """
    try:
        described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unsupported("a tokenizer without a readable tokenizer.json") from error
    model = described["model"]
    if model.get("type") != "BPE":
        raise _unsupported(f"a tokenizer of the kind {model.get('type')}")
    tokens, types = _tokens(described, size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        return Vocabulary(
            model="llama",
            splitter="default",
            tokens=tokens,
            types=_sentencepiece_types(tokens, types, model.get("unk_token")),
            scores=_scores(tokens, merges),
            space_prefix=_puts_space_first(described),
        )
    return Vocabulary(model="gpt2", splitter=_splitter(described), tokens=tokens, types=types, merges=merges)


def _tokens(described: dict[str, Any], size: int) -> tuple[list[bytes], list[TokenType]]:
    by_id = {number: text for text, number in described["model"]["vocab"].items()}
    added = {item["id"]: item for item in described.get("added_tokens", [])}
    by_id.update({number: item["content"] for number, item in added.items()})
    if max(by_id) >= size:
        raise _unsupported(f"a tokenizer of {max(by_id) + 1} tokens on an embedding of {size}")
    tokens, types = [], []
    for number in range(size):
        text = by_id.get(number)
        tokens.append((text if text is not None else f"[PAD{number}]").encode("utf-8"))
        if text is None:
            types.append(TokenType.UNUSED)
        elif number in added:
            types.append(TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    return tokens, types


def _sentencepiece_types(tokens: list[bytes], types: list[TokenType], unknown: str | None) -> list[TokenType]:
    found = list(types)
    for number, token in enumerate(tokens):
        text = token.decode("utf-8")
        if text == unknown:
            found[number] = TokenType.UNKNOWN
        elif _BYTE.fullmatch(text):
            found[number] = TokenType.BYTE
    return found


def _scores(tokens: list[bytes], merges: list[str]) -> list[float]:
    """SentencePiece joins the pair with the highest score first; BPE the pair whose merge stands first."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault(pair.replace(" ", ""), rank)
    return [-float(ranks.get(token.decode("utf-8"), -1) + 1) for token in tokens]


def _puts_space_first(described: dict[str, Any]) -> bool:
    """Whether the tokenizer writes a text as if a space stood before it."""
    for part in _parts(described.get("normalizer"), "normalizers"):
        if part["type"] == "Prepend" and part.get("prepend") == _WORD_START:
            return True
    for part in _parts(described.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] == "Metaspace":
            return bool(part.get("prepend_scheme", "always") != "never")
    return False


def _splitter(described: dict[str, Any]) -> str:
    if any(part["type"] != "NFC" for part in _parts(described.get("normalizer"), "normalizers")):
        raise _unsupported("a tokenizer that normalises text")
    parts = _parts(described.get("pre_tokenizer"), "pretokenizers")
    kinds = [part["type"] for part in parts]
    if not kinds or kinds[-1] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        raise _unsupported(f"a tokenizer that splits text by {', '.join(kinds) or 'nothing'}")
    own_rule = bool(parts[-1].get("use_regex", True))
    if kinds == ["ByteLevel"] and own_rule:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and own_rule and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not own_rule:
        rule = parts[0].get("pattern", {}).get("Regex")
        if rule in _SPLITTERS and parts[0].get("behavior") == "Isolated" and not parts[0].get("invert"):
            return _SPLITTERS[rule]
    raise _unsupported("a tokenizer that splits text by a rule of its own")


def _parts(described: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if described is None:
        return []
    return list(described[name]) if described["type"] == "Sequence" else [described]


def _unsupported(what: str) -> TrainerError:
    return TrainerError(
        EXPORT_UNSUPPORTED,
        f"GGUF cannot be written here for {what}. Export the formats adapter and merged, which hold the same model.",
    )
