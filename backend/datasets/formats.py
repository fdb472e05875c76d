"""The shapes in which examples leave: JSON lines of the common kinds, and CSV that no spreadsheet runs."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import orjson

from backend.kit.formulas import guarded

Format = Literal["jsonl", "messages", "prompt_completion", "sharegpt", "alpaca", "csv", "preference"]
FORMATS: tuple[Format, ...] = get_args(Format)
Message = dict[str, str]

CSV_COLUMNS = ("instruction", "input", "output", "system", "history", "split", "rejected")
_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


class Row(NamedTuple):
    """One example as it leaves. `history` are the turns before the instruction, as [{role, content}]."""

    id: str
    split: str
    instruction: str
    input: str
    output: str
    history: list[Message] | None
    is_valid: bool
    invalid_reason: str | None
    # A JSON object as text.
    metadata: str
    # An answer that is worse than `output`.
    rejected: str | None = None


def messages_of(instruction: str, given: str, output: str, history: Sequence[Message] | None) -> list[Message]:
    """An example as chat messages: its history, then the question with the input below it, then the answer."""
    question = f"{instruction}\n\n{given}" if given else instruction
    return [*(history or ()), {"role": "user", "content": question}, {"role": "assistant", "content": output}]


def encode(rows: Iterable[Row], format: Format) -> bytes:
    """The rows as lines, each with its end; a CSV's header is `header_of`."""
    if format == "csv":
        return _csv([_cells(row) for row in rows])
    shape, lines = _SHAPES[format], bytearray()
    for row in rows:
        if format == "preference" and row.rejected is None:
            continue
        # Each line goes at once: thousands of small ones alive together cost three times as much.
        lines += orjson.dumps(shape(row), option=orjson.OPT_APPEND_NEWLINE)
    return bytes(lines)


def header_of(format: Format) -> bytes:
    """What stands before the first row."""
    return _csv([CSV_COLUMNS]) if format == "csv" else b""


def _own(row: Row) -> dict[str, Any]:
    """All that is known: what is uploaded again gives the same example."""
    found: dict[str, Any] = {
        "id": row.id,
        "split": row.split,
        "instruction": row.instruction,
        "input": row.input,
        "output": row.output,
    }
    if row.rejected is not None:
        found["rejected"] = row.rejected
    system, turns = _parts(row)
    if system is not None:
        found["system"] = system
    if turns:
        found["history"] = turns
    if not row.is_valid:
        found |= {"is_valid": False, "invalid_reason": row.invalid_reason}
    if row.metadata != "{}":
        found["metadata"] = orjson.Fragment(row.metadata)
    return found


def _messages(row: Row) -> dict[str, Any]:
    return {"messages": messages_of(row.instruction, row.input, row.output, row.history)}


def _prompt_completion(row: Row) -> dict[str, Any]:
    """Texts; an example of several turns has lists of messages instead, which trainers take in the same fields."""
    *prompt, answer = messages_of(row.instruction, row.input, row.output, row.history)
    if row.history:
        return {"prompt": prompt, "completion": [answer]}
    return {"prompt": prompt[0]["content"], "completion": answer["content"]}


def preference_of(row: Row) -> dict[str, Any]:
    """A preferred and a rejected answer to one prompt as TRL's DPOTrainer reads them: texts, or lists of messages."""
    assert row.rejected is not None, "only what was rated is a preference"
    *prompt, answer = messages_of(row.instruction, row.input, row.output, row.history)
    if row.history:
        return {
            "prompt": prompt,
            "chosen": [answer],
            "rejected": [{"role": "assistant", "content": row.rejected}],
        }
    return {"prompt": prompt[0]["content"], "chosen": answer["content"], "rejected": row.rejected}


def _sharegpt(row: Row) -> dict[str, Any]:
    messages = messages_of(row.instruction, row.input, row.output, row.history)
    return {
        "conversations": [
            {"from": _SHAREGPT.get(turn["role"], turn["role"]), "value": turn["content"]} for turn in messages
        ]
    }


def _alpaca(row: Row) -> dict[str, Any]:
    """With `system` and `history` (pairs of question and answer) as LLaMA-Factory reads them, where there are any."""
    found: dict[str, Any] = {"instruction": row.instruction, "input": row.input, "output": row.output}
    system, turns = _parts(row)
    if system is not None:
        found["system"] = system
    if turns:
        texts = [turn["content"] for turn in turns]
        found["history"] = [texts[at : at + 2] for at in range(0, len(texts), 2)]
    return found


def _parts(row: Row) -> tuple[str | None, list[Message]]:
    """The system prompt, and the turns after it that come before the instruction."""
    turns = row.history or []
    if turns and turns[0]["role"] == "system":
        return turns[0]["content"], turns[1:]
    return None, turns


def _cells(row: Row) -> list[str]:
    system, turns = _parts(row)
    history = orjson.dumps(turns).decode() if turns else ""
    cells = (row.instruction, row.input, row.output, system or "", history, row.split, row.rejected or "")
    return [guarded(cell) for cell in cells]


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


_SHAPES: dict[str, Callable[[Row], dict[str, Any]]] = {
    "jsonl": _own,
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "preference": preference_of,
}
