"""Chat examples: JSON lines in, token ids and labels out, with labels on the answer only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from backend.trainers.errors import DATASET_TOO_LONG, DATASET_UNUSABLE, TrainerError

IGNORED = -100
Message = dict[str, str]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Example:
    """Token ids of one conversation; `labels` repeats them where the loss counts and is -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class EncodedSet:
    """The examples that fit, how many were left out, and the length of the longest seen, in tokens."""

    examples: list[Example]
    skipped: int
    longest: int


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


def encode_set(tokenizer: Any, path: Path, max_length: int) -> EncodedSet:
    """Encode a whole file. Examples longer than `max_length` tokens are left out: a cut answer teaches a wrong end.

    Raises TrainerError DATASET_UNUSABLE for an empty file, DATASET_TOO_LONG when none fits.
    """
    conversations = read_conversations(path)
    if not conversations:
        raise TrainerError(DATASET_UNUSABLE, f"{path.name} holds no examples. Generate a dataset first.")
    encoded = [encode(tokenizer, messages) for messages in conversations]
    longest = max(len(example.input_ids) for example in encoded)
    fitting = [example for example in encoded if len(example.input_ids) <= max_length]
    if not fitting:
        raise TrainerError(
            DATASET_TOO_LONG,
            f"No example of {path.name} fits in max_seq_length={max_length} tokens: the shortest has "
            f"{min(len(example.input_ids) for example in encoded)}. Raise max_seq_length, or shorten the examples.",
        )
    return EncodedSet(fitting, len(encoded) - len(fitting), longest)


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


class LengthGroupedSampler(Sampler[int]):
    """Shuffles anew each epoch, but puts examples of similar length into the same batch.

    Sorting happens inside pools of `pool` batches, and the batches come in random order, so that neither the batches
    nor their order repeat. The order depends on seed and epoch alone: a resumed run sees the same batches.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, pool: int = 4) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._pool = pool
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order: list[int] = torch.randperm(len(self._lengths), generator=generator).tolist()
        size = self._batch_size
        # The incomplete batch stays last: anywhere else it would shift the borders of the others.
        tail_start = len(order) - len(order) % size
        batches: list[list[int]] = []
        for start in range(0, tail_start, size * self._pool):
            pool = sorted(order[start : min(start + size * self._pool, tail_start)], key=self._lengths.__getitem__)
            batches += [pool[at : at + size] for at in range(0, len(pool), size)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[index]
        yield from order[tail_start:]


def _checked(messages: list[Message]) -> list[Message]:
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise ValueError("no answer")
    return [{"role": str(message["role"]), "content": str(message["content"])} for message in messages]
