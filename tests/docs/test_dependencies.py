"""docs/dependencies.md against pyproject.toml and the constraints."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def direct() -> set[str]:
    """The names of all direct dependencies, the ones without dependencies of their own included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    lists.append((ROOT / "requirements" / "no-deps.txt").read_text().split())
    names = (re.match(r"[\w.-]+", requirement) for found in lists for requirement in found)
    return {normal(match[0]) for match in names if match}


def pinned() -> dict[str, set[str]]:
    """Name -> the versions that the constraints allow; there may be one for each Python."""
    found: dict[str, set[str]] = {}
    text = "\n".join((ROOT / "requirements" / name).read_text() for name in ("constraints.txt", "no-deps.txt"))
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE):
        found.setdefault(normal(name), set()).add(version)
    return found


def test_every_direct_dependency_is_described_at_its_pinned_version() -> None:
    rows = re.findall(
        r"^\| `([\w.-]+)` \| (\S+) \| (\S+) \| ([\d.]+) \| (.+?) \| (.+) \|$",
        (ROOT / "docs" / "dependencies.md").read_text(),
        re.MULTILINE,
    )
    assert {normal(name) for name, *_ in rows} == direct()
    assert len(rows) == len(direct())
    constraints = pinned()
    for name, version, released, size, purpose, _ in rows:
        assert version in constraints[normal(name)], f"{name} is pinned at {constraints[normal(name)]}"
        assert re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", released), name
        assert float(size) >= 0
        assert purpose
