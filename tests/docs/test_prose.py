"""README and docs against the project: links lead somewhere, commands and routes exist."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from backend.kit.config import Settings
from backend.main import create_app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_code_exist(page: Path) -> None:
    for path in re.findall(
        r"`((?:backend|celery_app|tests|docs|benchmarks|deploy|migrations)/[\w./-]*)`", page.read_text()
    ):
        assert (ROOT / path).exists(), path


def test_the_readmes_commands_exist() -> None:
    run = (ROOT / "run").read_text()
    known = set(re.findall(r"^  \./run \[?(\w+)", run, re.MULTILINE))
    named = set(re.findall(r"\./run ([a-z]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test", "help", "ff"} <= named <= known
    commands = set(re.findall(r"\./run ff (\w+)", (ROOT / "README.md").read_text()))
    source = (ROOT / "backend" / "cli.py").read_text()
    assert commands <= set(re.findall(r"@app\.command\(\)\ndef (\w+)", source))


def test_the_readmes_requests_are_routes() -> None:
    paths = create_app(Settings(secret_key="k" * 48)).openapi()["paths"]  # type: ignore[arg-type]
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if "curl -s" in line]
    assert len(lines) == 10
    for line in lines:
        found = re.search(r"\$B(/[\w$/]+)", line)
        assert found is not None
        path = found[1].replace("$P", "{project_id}")
        method = "post" if re.search(r"-X POST|--json|-F ", line) else "get"
        assert method in paths[path], line


def test_settings_in_prose_exist() -> None:
    text = "".join(page.read_text() for page in PAGES)
    known = {name.upper() for name in Settings.model_fields}
    prefixes = "|".join(
        ("LLM", "HF", "UPLOAD", "TRAINING", "JOB", "EXTRACTION", "DATABASE", "REDIS", "STORAGE", "MODELS", "AUTH")
    )
    codes = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    for name in set(re.findall(rf"`((?:{prefixes})_[A-Z_]+)[`=]", text)) - codes:
        assert name in known, name


def test_the_picture_is_well_formed_and_described() -> None:
    root = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert {"title", "desc"} <= names
    assert "script" not in names
