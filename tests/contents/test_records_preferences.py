"""Rows with a preferred and a rejected answer, in the forms of others and in our own, and each way to be bad."""

from pathlib import Path
from typing import Any

import pytest

from backend.contents.records.containers import read_objects
from backend.contents.records.mapping import map_row
from backend.contents.records.row import Row, RowRefused
from backend.contents.types import CSV

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is a ferrule?"}
GOOD = {"role": "assistant", "content": "A metal ring."}
BAD = {"role": "assistant", "content": "A fruit."}
LATER = {"role": "user", "content": "Where is it?"}
SHORT = Row(1, "Q", "", "A", [SYSTEM], "B")
RATED = Row(1, "What is a ferrule?", "", "A metal ring.", None, "A fruit.")


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, Row(1, "Q", "", "A", None, "B")),
        ({"question": "Q", "preferred": " A\r\n", "rejected": "B"}, Row(1, "Q", "", "A", None, "B")),
        ({"instruction": "Q", "input": "C", "chosen": "A", "rejected": "B"}, Row(1, "Q", "C", "A", None, "B")),
        ({"instruction": "Q", "system": "Be brief.", "output": "A", "rejected": "B"}, SHORT),
        ({"instruction": "Q", "output": "A", "rejected": "B"}, Row(1, "Q", "", "A", None, "B")),
        ({"instruction": "Q", "output": "A", "rejected": " "}, Row(1, "Q", "", "A")),
        ({"instruction": "Q", "output": "A", "rejected": None}, Row(1, "Q", "", "A")),
        ({"question": "Q", "answer": "A", "chosen": True, "rejected": False}, Row(1, "Q", "", "A")),
        # As a table has them; where the answers are such words themselves, they are answers.
        ({"question": "Q", "answer": "A", "chosen": "True", "rejected": "False"}, Row(1, "Q", "", "A")),
        ({"question": "Q", "answer": "A", "rejected": "false"}, Row(1, "Q", "", "A")),
        ({"question": "Q", "answer": "True", "rejected": "False"}, Row(1, "Q", "", "True", rejected="False")),
        ({"question": "Q", "chosen": "True", "rejected": "False"}, Row(1, "Q", "", "True", rejected="False")),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, RATED),
        ({"prompt": "What is a ferrule?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [BAD]}, RATED),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, RATED),
        ({"messages": [USER, GOOD], "rejected": "A fruit."}, RATED),
        (
            {
                "conversations": [{"from": "human", "value": "What is a ferrule?"}],
                "chosen": {"from": "gpt", "value": "A metal ring."},
                "rejected": {"from": "gpt", "value": "A fruit."},
            },
            RATED,
        ),
        (
            {
                "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
                "preferred_output": [GOOD],
                "non_preferred_output": [BAD],
            },
            RATED,
        ),
        (
            {"prompt": [SYSTEM, USER, BAD, LATER], "chosen": "At the tip.", "rejected": "Nowhere."},
            Row(1, "Where is it?", "", "At the tip.", [SYSTEM, USER, BAD], "Nowhere."),
        ),
    ],
    ids=lambda value: None if isinstance(value, Row) else str(sorted(value))[:60],
)  # fmt: skip
def test_a_rated_row(fields: dict[str, Any], row: Row) -> None:
    shape, found = map_row(1, fields)
    assert found == row
    assert (shape == "preference") is (row.rejected is not None)
    assert Row.from_line(found.to_line()) == found


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "A "}, "same_answers", "the same"),
        ({"instruction": "Q", "output": "A", "rejected": "A"}, "same_answers", "'rejected'"),
        ({"prompt": "Q", "chosen": "", "rejected": "B"}, "empty_field", "'chosen'"),
        ({"prompt": "Q", "chosen": "A", "rejected": ""}, "empty_field", "'rejected'"),
        ({"prompt": "Q", "chosen": [], "rejected": "B"}, "empty_field", "'chosen'"),
        ({"prompt": "", "chosen": "A", "rejected": "B"}, "empty_field", "'prompt'"),
        ({"prompt": "Q", "chosen": 5, "rejected": "B"}, "wrong_type", "a number"),
        ({"prompt": "Q", "chosen": "A"}, "missing_field", "'rejected'"),
        ({"chosen": "A", "rejected": "B"}, "missing_field", "'prompt'"),
        ({"chosen": [USER, GOOD], "rejected": [LATER, BAD]}, "different_prompts", "one prompt"),
        ({"prompt": [USER], "chosen": [LATER, GOOD], "rejected": [LATER, BAD]}, "different_prompts", "one prompt"),
        ({"prompt": "Why?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "different_prompts", "question"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "bad_role_order", "assistant"),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "bad_role_order", "user"),
        ({"prompt": [USER], "chosen": ["A"], "rejected": [BAD]}, "wrong_type", "text"),
        (
            {"input": {"messages": [USER], "tools": [{}]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
            "unsupported_content",
            "tools",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_rated_row(fields: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(RowRefused) as caught:
        map_row(1, fields)
    assert (caught.value.code, said in str(caught.value)) == (code, True), str(caught.value)
    assert len(str(caught.value)) < 300


def test_rated_rows_of_a_table_and_of_one_object(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("prompt;chosen;rejected\nQ;A;B\nQ;A;\n")
    found = [fields for _, fields in read_objects(table, CSV, lambda: None)]
    assert map_row(1, found[0])[1].rejected == "B"  # type: ignore[arg-type]
    with pytest.raises(RowRefused, match="'rejected' is empty"):
        map_row(2, found[1])  # type: ignore[arg-type]
    one = tmp_path / "rows.json"
    one.write_text(
        '{"chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "rejected": []}'
    )
    assert [set(fields) for _, fields in read_objects(one, "application/json", lambda: None)] == [
        {"chosen", "rejected"}
    ]
