"""`./run bench [NAME ...]`: runs the measurements, prints ratios, and keeps them in benchmarks/results/."""

import argparse
import importlib
import json
import pkgutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks.measure import Row, machine

RESULTS = Path(__file__).parent / "results"
NOT_BENCHMARKS = {"__main__", "measure"}


def names() -> list[str]:
    """The modules of this package that have `run() -> list[Row]`; what serves them lies in packages."""
    found = pkgutil.iter_modules(benchmarks.__path__)
    return sorted(module.name for module in found if not module.ispkg and module.name not in NOT_BENCHMARKS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(names())}")
    wanted = parser.parse_args().names or names()
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        parser.error(f"there is no benchmark '{unknown[0]}'; there are: {', '.join(names())}")
    console = Console()
    missed = 0
    for name in wanted:
        console.print(f"[dim]{name} ...[/]")
        started = time.monotonic()
        rows: list[Row] = importlib.import_module(f"benchmarks.{name}").run()
        _show(console, name, rows)
        _keep(name, rows, time.monotonic() - started)
        missed += sum(not row.met for row in rows)
    if missed:
        console.print(f"[red]{missed} figures missed their target[/]")
    return 1 if missed else 0


def _show(console: Console, name: str, rows: list[Row]) -> None:
    table = Table(title=name, title_justify="left")
    for column in ("figure", "value", "limit or peer", "ratio", "target", ""):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for row in rows:
        side = "at least" if row.at == "least" else "at most"
        mark = "[green]met[/]" if row.met else "[red]missed[/]"
        value, limit = (f"{number:,.4g} {row.unit}".strip() for number in (row.value, row.limit))
        table.add_row(row.name, value, limit, f"{row.ratio:.2f}", f"{side} {row.target:g}", mark)
    console.print(table)


def _keep(name: str, rows: list[Row], seconds: float) -> None:
    RESULTS.mkdir(exist_ok=True)
    record = {
        "benchmark": name,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "rows": [
            {
                "name": row.name,
                "value": round(row.value, 4),
                "limit": round(row.limit, 4),
                "unit": row.unit,
                "ratio": round(row.ratio, 3),
                "target": f"at {row.at} {row.target:g}",
                "met": row.met,
            }
            for row in rows
        ],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
