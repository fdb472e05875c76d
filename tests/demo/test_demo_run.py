"""The whole demo on a stack of its own, and what ends it early."""

import json
import zipfile
from pathlib import Path

import pytest

from backend.cli import _options
from backend.demo.budget import Budget
from backend.demo.run import own_folder, run_demo
from backend.embedded.data_folder import read_state
from backend.embedded.stack import StackOptions
from tests.embedded.product import marked

SHORT = Budget(most_examples=16, epochs=1, questions_seen=1, questions_held_out=1, answer_tokens=8)


@pytest.fixture
def standing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the servers of the tests."""
    for name in (
        "DATABASE_URL",
        "REDIS_URL",
        "STORAGE_URL",
        "LLM_BASE_URL",
        "LLM_MODEL",
        "DATA_DIR",
        "AUTH_MODE",
        "RATE_LIMITS",
    ):
        monkeypatch.delenv(name, raising=False)


def test_the_default_data_folder_and_its_servers_are_left_alone() -> None:
    options = own_folder(StackOptions(database_url="postgresql+asyncpg://x/y", redis_url="redis://x", llm_model="m"))
    assert options.data_dir == Path(".finetuneflow-demo")
    assert (options.database_url, options.redis_url, options.llm_model) == (None, None, "m")
    chosen = StackOptions(data_dir=Path("/elsewhere"), database_url="postgresql+asyncpg://x/y")
    assert own_folder(chosen) is chosen


@pytest.mark.parametrize("name", ["missing.pdf", "."])
def test_what_is_no_file_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run_demo(tmp_path / name, StackOptions(data_dir=tmp_path / "data")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Give the path of" in " ".join(captured.err.split())
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # about 80 s on two idle cores
@pytest.mark.usefixtures("standing_alone")
def test_a_short_document_becomes_a_tuned_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], examples_folder: Path
) -> None:
    document = tmp_path / "short manual.md"
    manual = (examples_folder / "quillon-40.md").read_text()
    document.write_text(manual.partition("## Before the first start")[0])
    options = _options(host="127.0.0.1", port=0, data_dir=tmp_path / "data")
    assert run_demo(document, options, SHORT) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])
    assert found["document"] == "short manual.md"
    assert found["chunks"] > 1
    assert found["examples_train"] >= 6
    assert found["examples_eval"] >= 1
    assert found["eval_loss_tuned"] < found["eval_loss_base"]
    with zipfile.ZipFile(found["zip"]) as archive:
        assert archive.getinfo("adapter_model.safetensors").file_size == found["adapter_bytes"]
    assert "[12/12] Ask both models" in captured.err
    assert "seen in training" in captured.out
    assert read_state(tmp_path / "data") is None
    assert marked(tmp_path / "data") == []


@pytest.mark.slow
@pytest.mark.usefixtures("standing_alone")
def test_documents_that_do_not_work_end_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, tiny = tmp_path / "broken.pdf", tmp_path / "tiny.txt"
    broken.write_bytes(b"%PDF-1.7\nnothing here\n")
    tiny.write_text("The Quillon 40 weighs 52 kilograms.")
    for document, sentence in ((broken, "damaged"), (tiny, "longer document")):
        options = _options(host="127.0.0.1", port=0, data_dir=tmp_path / "data")
        assert run_demo(document, options, SHORT) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert sentence in " ".join(captured.err.split())
        assert "Traceback" not in captured.err
    assert marked(tmp_path / "data") == []
