"""Rows of every common shape, mapped to one; and each way in which a row can be bad."""

from typing import Any

import pytest

from backend.contents.records.mapping import map_row
from backend.contents.records.row import MAX_TEXT_CHARACTERS, MAX_TURNS, Row, RowRefused

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is a ferrule?"}
ASSISTANT = {"role": "assistant", "content": "A metal ring."}


def plain(instruction: str, output: str, given: str = "") -> Row:
    return Row(1, instruction, given, output)


@pytest.mark.parametrize(
    ("fields", "shape", "row"),
    [
        ({"instruction": "Q", "input": "C", "output": "A"}, "instruction", plain("Q", "A", "C")),
        ({"instruction": "Q", "input": "", "output": "A"}, "instruction", plain("Q", "A")),
        ({"instruction": "Q", "input": None, "output": "A"}, "instruction", plain("Q", "A")),
        ({"INSTRUCTION": "Q", " Output ": "A"}, "instruction", plain("Q", "A")),
        ({"instruction": "Q", "context": "C", "response": "A"}, "instruction", plain("Q", "A", "C")),
        ({"instruction": "Do", "question": "Q", "answer": "A"}, "instruction", plain("Do", "A", "Q")),
        ({"prompt": "Q", "completion": " A"}, "prompt_completion", plain("Q", "A")),
        ({"prompt": "Q", "response": "A"}, "prompt_response", plain("Q", "A")),
        ({"question": "Q", "answer": "A"}, "question_answer", plain("Q", "A")),
        ({"Question": "Q", "Réponse": "A"}, "question_answer", plain("Q", "A")),
        ({"QUESTION": "Q", "RE\u0301PONSE": "A", "Contexte": "C"}, "question_answer", plain("Q", "A", "C")),
        ({"context": "C", "question": "Q", "answer": "A"}, "question_answer", plain("Q", "A", "C")),
        (
            {"question": "Q", "answers": {"text": ["A", "B"], "answer_start": [1, 2]}},
            "question_answer",
            plain("Q", "A"),
        ),
        ({"question": "Q", "answers": [{"text": "A", "answer_start": 3}]}, "question_answer", plain("Q", "A")),
        ({"question": "Q", "answers": ["", "A"]}, "question_answer", plain("Q", "A")),
        ({"input": "Q", "output": "A"}, "input_output", plain("Q", "A")),
        ({"id": 7, "tags": ["x"], "question": "Q", "answer": "A"}, "question_answer", plain("Q", "A")),
        ({"instruction": "Q\r\nR", "output": "A\0\ud800B"}, "instruction", plain("Q\nR", "AB")),
        ({"messages": [USER, ASSISTANT]}, "messages", plain("What is a ferrule?", "A metal ring.")),
        ({"messages": [USER, ASSISTANT], "tools": []}, "messages", plain("What is a ferrule?", "A metal ring.")),
        (
            {"prompt": [USER], "completion": [ASSISTANT]},
            "messages",
            plain("What is a ferrule?", "A metal ring."),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}, ASSISTANT]},
            "messages",
            plain("a\nb", "A metal ring."),
        ),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            "sharegpt",
            plain("Q", "A"),
        ),
    ],
    ids=lambda value: None if isinstance(value, Row) else str(value)[:40],
)
def test_a_good_row(fields: dict[str, Any], shape: str, row: Row) -> None:
    assert map_row(1, fields) == (shape, row)


def test_earlier_turns_and_the_system_prompt_are_history() -> None:
    later = [{"role": "user", "content": "And a lamp?"}, {"role": "assistant", "content": "It gives light."}]
    shape, row = map_row(3, {"Messages": [SYSTEM, USER, ASSISTANT, *later]})
    assert shape == "messages"
    assert row == Row(3, "And a lamp?", "", "It gives light.", [SYSTEM, USER, ASSISTANT])
    assert Row.from_line(row.to_line()) == row


def test_the_system_prompt_of_other_shapes_is_kept() -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    assert map_row(1, {"system": "Be brief.", "conversations": turns})[1].history == [SYSTEM]
    assert map_row(1, {"system": "Be brief.", "instruction": "Q", "output": "A"})[1].history == [SYSTEM]
    system = [{"from": "system", "value": "Be brief."}, *turns]
    assert map_row(1, {"conversations": system})[1].history == [SYSTEM]


def test_pairs_of_earlier_turns_are_history() -> None:
    fields = {"instruction": "Q", "output": "A", "history": [["What is a ferrule?", "A metal ring."]]}
    assert map_row(1, fields)[1].history == [USER, ASSISTANT]


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"text": "Just words."}, "text_only", "raw_doc"),
        ({"x": 1, "y": 2}, "unknown_shape", "'x', 'y'"),
        ({}, "unknown_shape", "none"),
        ({"instruction": "Q"}, "missing_field", "'output'"),
        ({"question": "Q"}, "missing_field", "'answer'"),
        ({"output": "A"}, "missing_field", "'instruction'"),
        ({"instruction": "", "output": "A"}, "empty_field", "'instruction'"),
        ({"instruction": "Q", "output": " \n"}, "empty_field", "'output'"),
        ({"instruction": "Q", "output": None}, "empty_field", "'output'"),
        ({"question": "Q", "answers": {"text": [], "answer_start": []}}, "empty_field", "'answers'"),
        ({"instruction": 5, "output": "A"}, "wrong_type", "a number"),
        ({"instruction": "Q", "output": ["A"]}, "wrong_type", "a list"),
        ({"instruction": "Q", "input": {"a": 1}, "output": "A"}, "wrong_type", "'input'"),
        ({"instruction": "Q", "output": "x" * (MAX_TEXT_CHARACTERS + 1)}, "too_long", "100,001"),
        ({"prompt": "Q", "chosen": "A"}, "missing_field", "'rejected'"),
        ({"Question": "Q", "question": "R", "answer": "A"}, "duplicate_key", "question"),
        ({"messages": []}, "empty_field", "messages"),
        ({"messages": "hello"}, "wrong_type", "list of turns"),
        ({"messages": ["hello"]}, "wrong_type", "messages[0]"),
        ({"messages": [{"content": "hello"}]}, "missing_field", "role"),
        ({"messages": [{"role": 1, "content": "hello"}]}, "wrong_type", "role"),
        ({"messages": [{"role": "wizard", "content": "hello"}, ASSISTANT]}, "bad_role", "wizard"),
        ({"messages": [USER]}, "bad_role_order", "answer of the assistant"),
        ({"messages": [SYSTEM]}, "bad_role_order", "answer of the assistant"),
        ({"messages": [ASSISTANT, USER]}, "bad_role_order", "messages[0]"),
        ({"messages": [USER, USER, ASSISTANT]}, "bad_role_order", "messages[1]"),
        ({"messages": [USER, SYSTEM, ASSISTANT]}, "bad_role_order", "messages[1]"),
        ({"messages": [USER, ASSISTANT] * MAX_TURNS}, "too_long", "turns"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty_field", "messages[1]"),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "unsupported_content",
            "tool",
        ),
        ({"messages": [USER, {"role": "tool", "content": "42"}]}, "unsupported_content", "tool"),
        ({"messages": [USER, ASSISTANT], "tools": [{"type": "function"}]}, "unsupported_content", "tools"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT]},
            "unsupported_content",
            "image_url",
        ),
        ({"messages": [{"role": "user", "content": [5]}, ASSISTANT]}, "unsupported_content", "a number"),
        ({"instruction": "Q", "output": "A", "history": "earlier"}, "wrong_type", "history"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_row(fields: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(RowRefused) as caught:
        map_row(1, fields)
    assert caught.value.code == code
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300
