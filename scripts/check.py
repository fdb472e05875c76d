"""`./run check`: format, lint, types, import order, and migrations that match the models."""

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

BIN = Path(sys.executable).parent
STEPS: dict[str, list[str]] = {
    "format": [str(BIN / "ruff"), "format", "--check", "."],
    "lint": [str(BIN / "ruff"), "check", "."],
    "types": [str(BIN / "mypy")],
    "imports": [str(BIN / "lint-imports"), "--config", "pyproject.toml"],
    "migrations": [sys.executable, "-m", "scripts.check_migrations"],
}


def main(wanted: list[str]) -> int:
    console = Console()
    unknown = sorted(set(wanted) - set(STEPS))
    if unknown:
        console.print(f"There is no check '{unknown[0]}'. There are: {', '.join(STEPS)}.")
        return 2
    failed = []
    for name in wanted or STEPS:
        started = time.monotonic()
        done = subprocess.run(STEPS[name], capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        mark = "[green]ok[/]" if done.returncode == 0 else "[red]failed[/]"
        console.print(f"{name:<12}{mark}  {seconds:.1f} s")
        if done.returncode != 0:
            failed.append(name)
            console.print(done.stdout + done.stderr, markup=False, highlight=False)
    if failed:
        console.print(f"[red]{len(failed)} of {len(wanted or STEPS)} checks failed: {', '.join(failed)}[/]")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
