"""Reads the deployment files: Compose with its variables filled in, the Dockerfile by stages, the command line."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import typer
import yaml

from backend.cli import app

ROOT = Path(__file__).resolve().parents[2]
_VARIABLE = re.compile(r"\$\{(\w+)(?::?([-?])([^}]*))?\}")


def compose() -> dict[str, Any]:
    """docker-compose.yml as written, with anchors and merges resolved."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def filled_in(value: Any, given: dict[str, str]) -> Any:
    """`value` as Compose sees it: `given` variables, else their defaults; `$$` is a dollar sign."""
    if isinstance(value, dict):
        return {key: filled_in(item, given) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, given) for item in value]
    if not isinstance(value, str):
        return value

    def replacement(match: "re.Match[str]") -> str:
        name, operator, rest = match.groups()
        if name in given:
            return given[name]
        assert operator == "-", f"{name} has no default and is not given"
        return str(rest)

    return _VARIABLE.sub(replacement, value).replace("$$", "$")


def variables_of(text: str) -> dict[str, str | None]:
    """The variables that a Compose file asks for: name -> default, or None where it must be set."""
    return {name: rest if operator == "-" else None for name, operator, rest in _VARIABLE.findall(text)}


def parse_command(arguments: list[str]) -> dict[str, Any]:
    """What `finetuneflow ARGUMENTS` would run with; fails where the real command line would."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group | typer.core.TyperGroup)
    name, *rest = arguments
    assert name in group.commands, f"there is no command '{name}'"
    context = group.commands[name].make_context(name, list(rest))
    return {"command": name, **context.params}


@dataclass
class Stage:
    """One FROM of a Dockerfile with all that it inherits from earlier stages."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str:
        return [value for word, value in self.instructions if word == keyword][-1]

    def last_list(self, keyword: str) -> list[str]:
        found: list[str] = json.loads(self.last(keyword))
        return found


def dockerfile() -> tuple[list[tuple[str, str]], dict[str, Stage]]:
    """All instructions in order, and the stages by name."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    instructions = [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for word, rest in instructions:
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            inherited = list(stages[base].instructions) if base in stages else []
            current = stages[name] = Stage(name, base, inherited)
        elif current is not None:
            current.instructions.append((word, rest))
    return instructions, stages


def copied(value: str) -> list[str]:
    """The sources of a COPY from the build context."""
    words = [word for word in shlex.split(value) if not word.startswith("--")]
    return words[:-1]
