"""The shapes of an export, row by row, and cells that a spreadsheet must not run."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.datasets import formats
from backend.datasets.formats import Format, Row
from backend.kit.formulas import guarded, unguarded

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [{"role": "user", "content": "Hé?"}, {"role": "assistant", "content": "Ho."}]


def row(**fields: Any) -> Row:
    values = {
        "id": "7", "split": "train", "instruction": "Why?", "input": "", "output": "Because.",
        "history": None, "is_valid": True, "invalid_reason": None, "metadata": "{}",
    }  # fmt: skip
    return Row(**{**values, **fields})


def one(format: Format, **fields: Any) -> Any:
    return json.loads(formats.encode([row(**fields)], format))


def test_a_question_and_its_answer() -> None:
    assert one("jsonl") == {
        "id": "7",
        "split": "train",
        "instruction": "Why?",
        "input": "",
        "output": "Because.",
    }
    question, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
    assert one("messages") == {"messages": [question, answer]}
    assert one("prompt_completion") == {"prompt": "Why?", "completion": "Because."}
    assert one("sharegpt") == {
        "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
    }
    assert one("alpaca") == {"instruction": "Why?", "input": "", "output": "Because."}


def test_a_rejected_answer_leaves_where_there_is_a_field_for_it() -> None:
    assert one("jsonl", rejected="So.")["rejected"] == "So."
    assert one("preference", rejected="So.") == {"prompt": "Why?", "chosen": "Because.", "rejected": "So."}
    assert one("preference", rejected="So.", history=[SYSTEM]) == {
        "prompt": [SYSTEM, {"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "Because."}],
        "rejected": [{"role": "assistant", "content": "So."}],
    }
    assert formats.encode([row(), row(rejected="So."), row()], "preference").count(b"\n") == 1
    for kind in ("messages", "prompt_completion", "sharegpt", "alpaca"):
        assert "So." not in formats.encode([row(rejected="So.")], kind).decode()


def test_an_input_stands_below_the_instruction_where_there_is_no_field_for_it() -> None:
    assert one("messages", input="The text.")["messages"][0]["content"] == "Why?\n\nThe text."
    assert one("prompt_completion", input="The text.")["prompt"] == "Why?\n\nThe text."
    assert one("alpaca", input="The text.")["input"] == one("jsonl", input="The text.")["input"] == "The text."


@pytest.mark.parametrize("history", [[SYSTEM], TURNS, [SYSTEM, *TURNS]])
def test_earlier_turns_come_first(history: list[dict[str, str]]) -> None:
    whole = [*history, {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    assert one("messages", history=history)["messages"] == whole
    assert one("prompt_completion", history=history) == {"prompt": whole[:-1], "completion": whole[-1:]}
    assert [turn["value"] for turn in one("sharegpt", history=history)["conversations"]] == [
        turn["content"] for turn in whole
    ]
    system = "Be brief." if SYSTEM in history else None
    pairs = [["Hé?", "Ho."]] if TURNS[0] in history else None
    alpaca = one("alpaca", history=history)
    assert (alpaca.get("system"), alpaca.get("history")) == (system, pairs)
    own = one("jsonl", history=history)
    assert (own.get("system"), own.get("history")) == (system, TURNS if pairs else None)


def test_what_is_known_beside_the_texts() -> None:
    found = one("jsonl", is_valid=False, invalid_reason="duplicate", metadata='{"page": 3, "quote": "é"}')
    assert (found["is_valid"], found["invalid_reason"], found["metadata"]) == (
        False,
        "duplicate",
        {"page": 3, "quote": "é"},
    )


@pytest.mark.parametrize("format", [name for name in get_args(Format) if name != "csv"])
def test_one_line_a_row_whatever_it_says(format: Format) -> None:
    texts = ["a\nb\r\nc", "\u2028\x85", '"quoted", \\', "é 日 😀", "\x01\x1f"]
    rejected = "Worse." if format == "preference" else None
    encoded = formats.encode([row(instruction=text, output=text, rejected=rejected) for text in texts], format)
    lines = encoded.split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == len(texts)
    for line, text in zip(lines, texts, strict=True):
        assert list(strings(json.loads(line))).count(text) == 2


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(part)


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")', "-", "'=1", "''+1"]


@pytest.mark.parametrize("cell", FORMULAS)
def test_a_formula_is_guarded_in_every_column(cell: str) -> None:
    history = [{"role": "system", "content": cell}]
    encoded = formats.encode([row(instruction=cell, input=cell, output=cell, history=history)], "csv").decode()
    (cells,) = csv.reader(io.StringIO(encoded, newline=""))
    for found in cells[:4]:
        assert found[0] == "'"
        assert unguarded(found) == cell


@given(st.text(alphabet="='+-@\t\ra\n\",", max_size=6))
def test_guarding_can_be_undone(cell: str) -> None:
    assert unguarded(guarded(cell)) == cell
    assert guarded(cell)[:1] not in tuple("=+-@\t\r")


def test_csv_is_read_back_by_any_reader() -> None:
    texts = ["plain", "a,b;c", 'say "hi"', "two\nlines", "  edges  ", "é 日"]
    encoded = formats.header_of("csv") + formats.encode([row(instruction=text, history=TURNS) for text in texts], "csv")
    found = list(csv.DictReader(io.StringIO(encoded.decode(), newline="")))
    assert [line["instruction"] for line in found] == texts
    assert {line["split"] for line in found} == {"train"}
    assert [json.loads(line["history"]) for line in found] == [TURNS] * len(texts)
