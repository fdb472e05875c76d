"""A file of any container and shape to normalised rows, one JSON object a line, with a report on the bad ones."""

from pathlib import Path
from typing import BinaryIO

from backend.contents.parsers.confinement import start_step
from backend.contents.parsers.failures import DocumentTooLarge
from backend.contents.parsers.limits import ExtractionLimits
from backend.contents.records.containers import read_objects
from backend.contents.records.mapping import map_row
from backend.contents.records.row import MAX_ROWS, ImportReport, RowRefused

_ROWS_PER_STEP = 1_000


def write_rows(file: BinaryIO, source: Path, mime_type: str, limits: ExtractionLimits) -> ImportReport:
    """Writes the good rows in order. Raises an ExtractionError for a file that cannot be read at all."""
    report = ImportReport()
    seen = 0
    for number, found in read_objects(source, mime_type, lambda: start_step(limits)):
        seen += 1
        if seen % _ROWS_PER_STEP == 0:
            start_step(limits)
        if seen > MAX_ROWS:
            raise DocumentTooLarge(
                f"The file has more than {MAX_ROWS:,} rows. Split it into smaller files and upload those."
            )
        try:
            if isinstance(found, RowRefused):
                raise found
            shape, row = map_row(number, found)
        except RowRefused as refused:
            report.refuse(number, refused)
            continue
        file.write(row.to_line())
        report.accept(shape)
    file.truncate()
    return report
