"""The MIME types that contents have, what is taken for what, and what a content's type is called."""

from typing import Final

PDF: Final = "application/pdf"
DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
TEXT: Final = "text/plain"
MARKDOWN: Final = "text/markdown"
JSON: Final = "application/json"
JSON_LINES: Final = "application/jsonl"
CSV: Final = "text/csv"

TYPE_OF_MIME = {
    PDF: "pdf",
    DOCX: "docx",
    TEXT: "text",
    MARKDOWN: "markdown",
    JSON: "json",
    JSON_LINES: "jsonl",
    CSV: "csv",
}
ACCEPTED: Final[dict[str, frozenset[str]]] = {
    "raw_doc": frozenset({PDF, DOCX, TEXT, MARKDOWN}),
    "dataset_upload": frozenset({JSON, JSON_LINES, CSV, TEXT}),
}
