"""Files of every container and encoding: which rows come out, and which lines are reported."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from backend.contents.extraction import DocumentBroken, DocumentTooLarge, EmptyDocument, ExtractionLimits
from backend.contents.records import row as row_module
from backend.contents.records import writing
from backend.contents.records.row import ImportReport, Row, read_rows
from backend.contents.types import CSV, JSON, JSON_LINES, TEXT

GOOD = {"instruction": "Q", "output": "A"}
LINE = json.dumps(GOOD)


@pytest.fixture(autouse=True)
def no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer that ends a step kills its process, which here is that of the tests."""
    monkeypatch.setattr(writing, "start_step", lambda limits: None)


def read(tmp_path: Path, content: str | bytes, mime_type: str) -> tuple[list[Row], ImportReport]:
    source = tmp_path / "source"
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    file = io.BytesIO()
    report = writing.write_rows(file, source, mime_type, ExtractionLimits())
    file.seek(0)
    rows = list(read_rows(file))
    assert len(rows) == report.valid
    return rows, report


def errors(report: ImportReport) -> list[tuple[int, str]]:
    return [(error["line"], error["code"]) for error in report.errors]


@pytest.mark.parametrize(
    ("content", "mime_type", "lines"),
    [
        (f"{LINE}\n{LINE}\n", JSON_LINES, [1, 2]),
        (f"{LINE}\r\n\r\n{LINE}", JSON_LINES, [1, 3]),
        (f"{LINE}\n{LINE}\n", TEXT, [1, 2]),
        (f"\ufeff{LINE}\n{LINE}\n", TEXT, [1, 2]),
        (f"{LINE}\n{LINE}\n", CSV, [1, 2]),
        (LINE, JSON, [1]),
        (json.dumps([GOOD, GOOD]), JSON, [1, 2]),
        (json.dumps([GOOD, GOOD], indent=2), JSON, [1, 2]),
        (json.dumps([GOOD, GOOD]), JSON_LINES, [1, 2]),
        (json.dumps([GOOD, GOOD]), TEXT, [1, 2]),
        (json.dumps({"data": [GOOD, GOOD]}), JSON, [1, 2]),
        (
            json.dumps({"version": "1", "sizes": [1, 2], "rows": [GOOD, GOOD], "end": {"a": [1]}}, indent=1),
            JSON,
            [1, 2],
        ),
        (f'{{"data": [\n{LINE},\n{LINE}\n]}}', JSON, [1, 2]),
        (json.dumps(GOOD, indent=2), JSON, [1]),
        (
            json.dumps({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}),
            JSON,
            [1],
        ),
        ("question,answer\nQ,A\nQ,A\n", CSV, [2, 3]),
        ("\ufeffQuestion;Réponse\nQ;A\n\nQ;A\n", CSV, [2, 4]),
        ("question\tanswer\nQ\tA\n", CSV, [2]),
        ("question\tanswer\nQ\tA\n", TEXT, [2]),
        ('sep=;\n"question";"answer"\nQ;A\n', CSV, [3]),
        ("question|answer\nQ|A\n", CSV, [2]),
        ('id,Question,Answer\n1,"Q",A\n', CSV, [2]),
    ],
    ids=range(22),
)
def test_containers(tmp_path: Path, content: str, mime_type: str, lines: list[int]) -> None:
    rows, report = read(tmp_path, content, mime_type)
    assert [(row.line, row.instruction, row.output) for row in rows] == [(line, "Q", "A") for line in lines]
    assert report.errors == []


def test_cells_with_quotes_delimiters_and_line_feeds(tmp_path: Path) -> None:
    content = 'question,context,answer\n"Say ""hi"", now","two\nlines",A\n"Q2",,A2\nQ3,"",A3\n'
    rows, report = read(tmp_path, content, CSV)
    assert rows == [Row(2, 'Say "hi", now', "two\nlines", "A"), Row(4, "Q2", "", "A2"), Row(5, "Q3", "", "A3")]
    assert report.to_dict()["shape"] == "question_answer"


def test_a_conversation_in_a_cell(tmp_path: Path) -> None:
    turns = json.dumps([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}])
    cell = turns.replace('"', '""')
    rows, _ = read(tmp_path, f'id,messages\n1,"{cell}"\n', CSV)
    assert rows == [Row(2, "Q", "", "A")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "question;réponse\nOù est la cuve ?;Derrière la trémie, à côté.\nEt l'été ?;Elle est déjà là.\n"
    rows, _ = read(tmp_path, text.encode(encoding), CSV)
    assert rows[0].instruction == "Où est la cuve ?"
    assert rows[1].output == "Elle est déjà là."


def test_a_bad_line_is_told_and_sinks_no_other(tmp_path: Path) -> None:
    lines = [
        LINE,
        '{"instruction": "Q", "output": ',
        "not JSON",
        "[1, 2]",
        '"text"',
        '{"a": 1, "a": 2}',
        '{"text": "words"}',
        '{"instruction": "Q", "output": ' + "9" * 5000 + "}",
        "[" * 5000,
        '{"instruction": "Q", "output": "\\ud83d"}',
        '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}',
        LINE,
    ]
    rows, report = read(tmp_path, "\n".join(lines), JSON_LINES)
    assert [row.line for row in rows] == [1, 11, 12]
    assert errors(report) == [
        (2, "bad_json"),
        (3, "bad_json"),
        (4, "not_an_object"),
        (5, "not_an_object"),
        (6, "duplicate_key"),
        (7, "text_only"),
        (8, "bad_json"),
        (9, "bad_json"),
        (10, "empty_field"),
    ]
    found = report.to_dict()
    assert (found["shape"], found["rows"], found["valid"], found["invalid"]) == ("instruction", 12, 3, 9)
    assert found["error_counts"] == {
        "bad_json": 4,
        "not_an_object": 2,
        "duplicate_key": 1,
        "text_only": 1,
        "empty_field": 1,
    }


@pytest.mark.parametrize(
    ("content", "lines", "bad"),
    [
        (f"[{LINE}, {{'a': 1}}, 5, {LINE}]", [1, 4], [(2, "bad_json"), (3, "not_an_object")]),
        (f"[{LINE}, {LINE}", [1, 2], [(3, "bad_json")]),
        (f"[{LINE}, {LINE}] {{}}", [1, 2], [(3, "bad_json")]),
        (f"[{LINE}}}, {LINE}]", [1, 2], [(2, "bad_json")]),
        (f'[{LINE}, {{"instruction": "Q", "output": tru}}, {LINE}]', [1, 3], [(2, "bad_json")]),
        (f'[{LINE}, {{"instruction": "a ] }} [ \\" , b", "output": "A"}}, {LINE}]', [1, 2, 3], []),
        (f"[{LINE} {LINE}]", [1, 2], []),
    ],
    ids=range(7),
)
def test_a_bad_element_of_an_array(tmp_path: Path, content: str, lines: list[int], bad: list[tuple[int, str]]) -> None:
    rows, report = read(tmp_path, content, JSON)
    assert [row.line for row in rows] == lines
    assert errors(report) == bad


def test_bad_rows_of_a_table(tmp_path: Path) -> None:
    content = 'question,answer\nQ,A\nonly one\nQ,A,more\nQ,\n"never closed,A\nQ,A\n'
    rows, report = read(tmp_path, content, CSV)
    assert [row.line for row in rows] == [2]
    assert errors(report) == [(3, "missing_field"), (4, "bad_csv"), (5, "empty_field"), (6, "missing_field")]
    _, twice = read(tmp_path, "question,answer,answer\nQ,A,B\n", CSV)
    assert errors(twice) == [(2, "duplicate_key")]


def test_elements_longer_than_a_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way of cutting the text into pieces finds the same elements."""
    objects: list[dict[str, Any]] = [
        {"instruction": f'Q{number} \\" [{{', "output": 'x"\\' * number + "é\n"} for number in range(60)
    ]
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr("backend.contents.records.brackets._FILL_CHARACTERS", size)
        monkeypatch.setattr("backend.contents.parsers.decoding._LONGEST_PIECE", size)
        rows, report = read(tmp_path, json.dumps({"n": "[", "data": objects}, ensure_ascii=False), JSON)
        assert (
            report.errors == [{"line": 1, "code": "empty_field", "message": "'output' is empty."}] or not report.errors
        )
        assert [row.instruction for row in rows] == [item["instruction"] for item in objects]


def test_only_the_first_hundred_errors_are_kept(tmp_path: Path) -> None:
    rows, report = read(tmp_path, f"{LINE}\n" + "x\n" * 250, JSON_LINES)
    assert len(rows) == 1
    assert len(report.errors) == 100
    assert report.error_counts == {"bad_json": 250}


def test_files_that_hold_no_rows_to_speak_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmptyDocument):
        read(tmp_path, " \n\n", JSON_LINES)
    with pytest.raises(DocumentBroken, match="several lists of rows"):
        read(tmp_path, json.dumps({"train": [GOOD], "test": [GOOD]}), JSON)
    monkeypatch.setattr(writing, "MAX_ROWS", 3)
    with pytest.raises(DocumentTooLarge, match="more than 3 rows"):
        read(tmp_path, f"{LINE}\n" * 4, JSON_LINES)
    assert row_module.MAX_ROWS == 500_000


def test_prose_is_no_dataset(tmp_path: Path) -> None:
    rows, report = read(tmp_path, "Once upon a time, there was a lamp.\nIt stood.\n", TEXT)
    assert rows == []
    assert errors(report) == [(1, "bad_json"), (2, "bad_json")]
