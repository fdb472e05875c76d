"""What the demo prints: bars or plain lines, tables at two widths, and one line of JSON."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from backend.demo.errors import DemoFailed
from backend.demo.flow import Answer, Outcome, check_archive, evenly
from backend.demo.results import json_line, shortened, show_results
from backend.demo.screen import Screen

KEYS = (
    "document pages chunks examples_train examples_eval eval_loss_base eval_loss_tuned train_seconds adapter_bytes zip "
    "total_seconds"
)
EXPECTED = "Maristal Works was founded in 1987 by the engineer Odalys Brenn."


@pytest.fixture
def outcome() -> Outcome:
    return Outcome(
        document="quillon [40].pdf",
        pages=9,
        chunks=22,
        examples_train=63,
        examples_eval=16,
        eval_loss_base=2.465,
        eval_loss_tuned=1.957,
        train_seconds=120.04,
        adapter_bytes=19_593_064,
        zip=Path("/data/quillon [40]-adapter.zip"),
        answers=[
            Answer("When was Maristal Works founded?", EXPECTED, "In 1600. " * 100, EXPECTED.upper(), held_out=False),
            Answer("What is it?", "A press.", "[bold]A car[/bold]", "A dial.", held_out=True),
        ],
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_and_tell_seen_from_held_out(outcome: Outcome, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    show_results(console, outcome, embedded_model=True)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    for wanted in ("2.465", "1.957", "-21 %", "seen in training", "held out", "[bold]A car[/bold]", "LLM_BASE_URL"):
        assert wanted in text
    assert text.count("✔") == 1
    assert "1 of 1 questions from the training set" in " ".join(text.split())
    assert "quillon [40]-adapter.zip" in text


def test_another_model_is_not_called_starter_quality(outcome: Outcome) -> None:
    console = Console(file=io.StringIO(), width=100)
    show_results(console, outcome, embedded_model=False)
    assert "Starter quality" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_json_has_the_agreed_keys_in_one_line(outcome: Outcome) -> None:
    line = json_line(outcome, 401.26)
    assert "\n" not in line
    found = json.loads(line)
    assert list(found) == KEYS.split()
    assert (found["pages"], found["eval_loss_tuned"], found["total_seconds"]) == (9, 1.957, 401.3)
    outcome.pages = None  # a format without pages
    assert json.loads(json_line(outcome, 1.0))["pages"] is None


def test_steps_become_plain_lines_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with Screen(console, 2) as screen:
        with screen.step("Upload", "a [b].pdf") as step:
            step.show(50.0, "half")
        with pytest.raises(DemoFailed), screen.step("Train"):
            raise DemoFailed("no")
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.strip().split("  ")[0][:9] for line in lines] == ["[ 1/2] Up", "done in 0", "[ 2/2] Tr", "failed"]
    assert "a [b].pdf" in lines[0]
    assert "half" in lines[1]


def test_steps_on_a_terminal_are_marked_and_fit() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)
    with Screen(console, 2) as screen:
        with screen.step("Upload") as step:
            step.show(10.0, "[not markup] " * 20)
        with pytest.raises(DemoFailed), screen.step("Train"):
            raise DemoFailed("no")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "✔" in text
    assert "✘" in text
    assert "[not markup]" in text


def test_long_answers_are_cut_at_a_word() -> None:
    cut = shortened("word " * 100)
    assert len(cut) < 150
    assert cut.endswith("word ...")
    assert shortened("  \n ") == "(no answer)"


def test_rows_are_taken_evenly() -> None:
    rows = [{"n": number} for number in range(10)]
    assert [row["n"] for row in evenly(rows, 4)] == [1, 3, 6, 8]
    assert evenly(rows[:2], 4) == rows[:2]


def test_an_archive_is_checked_for_what_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("adapter_model.safetensors", b"weights")
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    check_archive(path, good)
    with pytest.raises(DemoFailed, match="not what the service listed"):
        check_archive(path, "0" * 64)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("report.md", b"no adapter")
    with pytest.raises(DemoFailed, match=r"adapter_model\.safetensors cannot be read"):
        check_archive(path, hashlib.sha256(path.read_bytes()).hexdigest())
    path.write_bytes(b"no zip")
    with pytest.raises(DemoFailed, match="not a zip"):
        check_archive(path, hashlib.sha256(b"no zip").hexdigest())
