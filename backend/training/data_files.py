"""The files that a trainer reads, written from a frozen version: conversations, or rated answers for dpo."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

from backend.datasets import exporting, formats
from backend.datasets.formats import Row
from backend.training.methods import PREFERENCES

Split = Literal["train", "eval"]
TRAIN, EVAL, _HELD_OUT = "train.jsonl", "eval.jsonl", "held_out.jsonl"


async def write(folder: Path, open: exporting.Open, dataset_id: int, version: int, method: str) -> None:
    """Writes what is not there: in the method's format `train.jsonl` and `eval.jsonl`, and for the proof `held_out`.

    The training set is written last: where it is, all are whole. The same version gives the same bytes.
    """
    if (folder / TRAIN).exists():
        return
    if method == PREFERENCES:
        await write_conversations(folder / _HELD_OUT, open, dataset_id, "eval", version)
        await write_preferences(folder / EVAL, open, dataset_id, "eval", version)
        await write_preferences(folder / TRAIN, open, dataset_id, "train", version)
    else:
        await write_conversations(folder / EVAL, open, dataset_id, "eval", version)
        await write_conversations(folder / TRAIN, open, dataset_id, "train", version)


def held_out(folder: Path, method: str) -> Path:
    """All held-out examples as conversations, in the order of their ids."""
    return folder / (_HELD_OUT if method == PREFERENCES else EVAL)


async def write_conversations(path: Path, open: exporting.Open, dataset_id: int, split: Split, version: int) -> None:
    """Writes one split of a frozen version as {"messages": [...]} lines, in the order of the examples.

    An answer that was rated several times is learned once.
    """
    seen: set[int] = set()

    async def lines() -> AsyncIterator[dict[str, Any]]:
        async for row in _rows(open, dataset_id, split, version):
            messages = formats.messages_of(row.instruction, row.input, row.output, row.history)
            if split == "train":
                known = hash(tuple((turn["role"], turn["content"]) for turn in messages))
                if known in seen:
                    continue
                seen.add(known)
            yield {"messages": messages}

    await _write(path, lines())


async def write_preferences(path: Path, open: exporting.Open, dataset_id: int, split: Split, version: int) -> None:
    """Writes the rated examples of one split as {"prompt", "chosen", "rejected"} lines, in their order."""

    async def lines() -> AsyncIterator[dict[str, Any]]:
        async for row in _rows(open, dataset_id, split, version):
            if row.rejected is not None:
                yield formats.preference_of(row)

    await _write(path, lines())


async def _rows(open: exporting.Open, dataset_id: int, split: Split, version: int) -> AsyncIterator[Row]:
    async for batch in exporting.rows(open, dataset_id, split=split, version=version):
        for row in batch:
            yield row


async def _write(path: Path, lines: AsyncIterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    with aside.open("w", encoding="utf-8") as file:
        async for line in lines:
            # In ASCII, because a text may hold characters that end a line for some readers (U+2028).
            file.write(json.dumps(line) + "\n")
    aside.replace(path)
