"""Entry of the child that reads rows of examples: `python -m backend.contents.records`, see `contents.parsers.child`.

It tells the ImportReport of the rows that DESTINATION holds.
"""

from pathlib import Path
from typing import Any

from backend.contents.parsers import child
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.records.writing import write_rows


def read_rows(source: Path, destination: Path, mime_type: str, limits: ExtractionLimits) -> dict[str, Any]:
    with destination.open("r+b") as file:
        child.confine(limits)
        return write_rows(file, source, mime_type, limits).to_dict()


if __name__ == "__main__":
    child.run(read_rows)
