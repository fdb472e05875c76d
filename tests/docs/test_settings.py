"""docs/settings.md and .env.example against the settings themselves."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backend.kit.config import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = "Docker Compose only"


def default_of(name: str) -> str:
    """A setting's default as it would stand in the environment."""
    value: Any = Settings.model_fields[name].default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def example() -> tuple[str, str]:
    """.env.example: what the service reads, and what Compose reads."""
    ours, _, compose = (ROOT / ".env.example").read_text().partition(f"# ---- {DOCKER}")
    return ours, compose


def test_the_example_names_every_setting_once_with_its_default_and_changes_nothing() -> None:
    lines = [line for line in example()[0].splitlines() if re.match(r"#?[A-Z]", line)]
    assert all(line.startswith("#") for line in lines), "a copy of the example must change nothing"
    pairs = [line.removeprefix("#").split("=", 1) for line in lines]
    assert dict(pairs) == {name.upper(): default_of(name) for name in Settings.model_fields}
    assert max(Counter(name for name, _ in pairs).values()) == 1


def test_the_examples_values_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    filled = re.sub(r"^#([A-Z0-9_]+=.+)$", r"\1", example()[0], flags=re.MULTILINE)
    (tmp_path / "env").write_text(filled)
    assert Settings(_env_file=tmp_path / "env") == Settings(_env_file=None)  # type: ignore[call-arg]


def test_every_variable_of_the_example_is_explained_above_it() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"#?[A-Z0-9_]+=", line):
            assert before.startswith("# "), line
            assert not before.startswith("# ----"), line


def test_the_table_holds_every_setting_with_its_default() -> None:
    ours, _, compose = (ROOT / "docs" / "settings.md").read_text().partition(f"## {DOCKER}")
    row = re.compile(r"^\| `([A-Z0-9_]+)` \| (?:\*empty\*|`(.*?)`) \| (.+) \|$", re.MULTILINE)
    rows = row.findall(ours)
    assert {name: value for name, value, _ in rows} == {
        name.upper(): default_of(name) for name in Settings.model_fields
    }
    assert len(rows) == len(Settings.model_fields)
    offered = dict(re.findall(r"^#?([A-Z0-9_]+)=(.*)$", example()[1], re.MULTILINE))
    assert {name: value for name, value, _ in row.findall(compose)} == offered
