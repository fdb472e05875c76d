"""Which MIME types are taken for what, and what a content's type is called."""

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

TYPE_OF_MIME = {
    "application/pdf": "pdf",
    DOCX: "docx",
    "text/plain": "text",
    "text/markdown": "markdown",
    "application/json": "json",
    "application/jsonl": "jsonl",
    "text/csv": "csv",
}
ACCEPTED = {
    "raw_doc": frozenset({"application/pdf", DOCX, "text/plain", "text/markdown"}),
    "dataset_upload": frozenset({"application/json", "application/jsonl", "text/csv", "text/plain"}),
}
