"""Chat examples: JSON lines in, token ids and labels out, with labels on the answer only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from backend.trainers.errors import DATASET_TOO_LONG, DATASET_UNUSABLE, TrainerError

IGNORED = -100
LongExamples = Literal["truncate", "skip"]
_CUT = " ... "
# Tokens spliced from two texts rarely number what their parts did: each try cuts what is still too much.
_TRIES = 4
Message = dict[str, str]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Example:
    """Token ids of one conversation; `labels` repeats them where the loss counts and is -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class EncodedSet:
    """The examples that fit, how many were left out, the longest seen in tokens, and how many had a question cut."""

    examples: list[Example]
    skipped: int
    longest: int
    truncated: int = 0


def read_conversations(path: Path) -> list[list[Message]]:
    """Read `{"messages": [...]}` lines. Raises TrainerError DATASET_UNUSABLE that names the first bad line."""
    try:
        # Not splitlines: texts may hold other line ends, such as U+2028.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainerError(DATASET_UNUSABLE, f"The dataset file {path.name} cannot be read: {error}.") from error
    conversations = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            conversations.append(_checked(json.loads(line)["messages"]))
        except (ValueError, KeyError, TypeError) as error:
            raise TrainerError(
                DATASET_UNUSABLE,
                f'Line {number} of {path.name} is no {{"messages": [...]}} that ends with an answer of the assistant. '
                "Generate the dataset again, or correct that line.",
            ) from error
    return conversations


def encode_set(tokenizer: Any, path: Path, max_length: int, long_examples: LongExamples = "truncate") -> EncodedSet:
    """Encode a whole file. Of examples longer than `max_length` tokens the question is cut, never the answer.

    With "skip", and where the answer alone is too long, they are left out. Raises TrainerError DATASET_UNUSABLE for an
    empty file, DATASET_TOO_LONG when no example fits.
    """
    conversations = read_conversations(path)
    if not conversations:
        raise TrainerError(DATASET_UNUSABLE, f"{path.name} holds no examples. Generate a dataset first.")
    fitting: list[Example] = []
    lengths = []
    truncated = 0
    for messages in conversations:
        example = encode(tokenizer, messages)
        lengths.append(len(example.input_ids))
        if lengths[-1] > max_length and long_examples == "truncate":
            shorter = shorten(tokenizer, messages, max_length)
            if shorter is not None:
                example = encode(tokenizer, shorter)
                truncated += 1
        if len(example.input_ids) <= max_length:
            fitting.append(example)
    if not fitting:
        raise TrainerError(
            DATASET_TOO_LONG,
            f"No example of {path.name} fits in max_seq_length={max_length} tokens: the shortest has "
            f"{min(lengths)}. Raise max_seq_length, or shorten the examples.",
        )
    return EncodedSet(fitting, len(conversations) - len(fitting), max(lengths), truncated)


def shorten(tokenizer: Any, messages: list[Message], max_length: int) -> list[Message] | None:
    """Cut the middle out of the longest message before the answer until all fits; None when that is not enough.

    The start of a question says what is asked, and its end often does: what lies between is given up.
    """
    longest = max(range(len(messages) - 1), key=lambda index: len(messages[index]["content"]))
    ids = tokenizer(messages[longest]["content"], add_special_tokens=False)["input_ids"]
    room = len(ids) + max_length - len(encode(tokenizer, messages).input_ids)
    for _ in range(_TRIES):
        room -= len(tokenizer(_CUT, add_special_tokens=False)["input_ids"])
        if room < 2:
            return None
        head = tokenizer.decode(ids[: (room + 1) // 2])
        content = head + _CUT + tokenizer.decode(ids[len(ids) - room // 2 :])
        shorter = [*messages[:longest], {**messages[longest], "content": content}, *messages[longest + 1 :]]
        if len(encode(tokenizer, shorter).input_ids) <= max_length:
            return shorter
    return None


def encode(tokenizer: Any, messages: list[Message]) -> Example:
    """Encode one conversation; the last message is the answer that is learned, with its end token."""
    prompt = prompt_ids(tokenizer, messages[:-1])
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    # Templates may render a prompt alone differently: the answer starts where the two part.
    start = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole))
    )
    end_token = tokenizer.eos_token_id
    end = len(whole)
    if end_token in whole[start:]:
        end = len(whole) - whole[::-1].index(end_token)
        ids = whole[:end]
    else:
        ids = [*whole, end_token]
    return Example(ids, [IGNORED] * start + ids[start:])


def prompt_ids(tokenizer: Any, messages: list[Message]) -> list[int]:
    """Token ids of a prompt that waits for the assistant's answer."""
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Pad on the right to the longest: input_ids, attention_mask and labels, each (examples, tokens) int64."""
    width = max(len(example.input_ids) for example in examples)

    def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (width - len(row)) for row in rows])

    return {
        "input_ids": padded([example.input_ids for example in examples], pad_token_id),
        "attention_mask": padded([[1] * len(example.input_ids) for example in examples], 0),
        "labels": padded([example.labels for example in examples], IGNORED),
    }


def _checked(messages: list[Message]) -> list[Message]:
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise ValueError("no answer")
    return [{"role": str(message["role"]), "content": str(message["content"])} for message in messages]
