"""MIME types by content."""

from pathlib import Path

import pytest

from backend.contents.sniffing import sniff
from backend.contents.types import ACCEPTED
from tests.contents import corpus

EXECUTABLE = "application/x-executable"


@pytest.mark.parametrize(
    ("filename", "data", "mime_type"),
    [
        ("a.pdf", corpus.pdf([["Hello"]]), "application/pdf"),
        ("a.txt", corpus.pdf([["Hello"]]), "application/pdf"),
        ("a.docx", corpus.docx(["Hello"]), corpus.DOCX),
        ("a.bin", corpus.docx(["Hello"]), corpus.DOCX),
        ("a.docx", corpus.archive({"a.txt": b"x"}), "application/zip"),
        ("a.docx", b"PK\x03\x04 and nothing more", "application/zip"),
        ("malware.exe", b"MZ\x90\x00\x03" + b"\0" * 60, EXECUTABLE),
        ("malware.exe", b"echo hello", EXECUTABLE),
        ("report.pdf", b"MZ\x90\x00\x03" + b"\0" * 60, EXECUTABLE),
        ("report.pdf", b"\x7fELF\x02\x01\x01" + b"\0" * 60, EXECUTABLE),
        ("notes.txt", b"MZ is how this sentence starts.", "text/plain"),
        ("a.pdf", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image/png"),
        ("a.txt", b"GIF89a\x01\x00\x01\x00\x00\xff\x00,", "image/gif"),
        ("a.txt", b"<!DOCTYPE html><html><body>x</body></html>", "text/html"),
        ("a.md", b"\n <HTML lang=en>", "text/html"),
        ("a.txt", b"<?xml version='1.0'?><svg xmlns='x'/>", "image/svg+xml"),
        ("a.txt", b"<?xml version='1.0'?><a/>", "application/xml"),
        ("a.txt", b"{\\rtf1\\ansi hello}", "application/rtf"),
        ("a.txt", b"plain words", "text/plain"),
        ("README", b"plain words", "text/plain"),
        ("a.md", b"# Heading", "text/markdown"),
        ("a.MARKDOWN", b"# Heading", "text/markdown"),
        ("a.csv", b"a,b\n1,2\n", "text/csv"),
        ("a.json", b'[{"a": 1}]', "application/json"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "application/jsonl"),
        ("a.json", b'{\n  "a": 1\n}\n', "application/json"),
        ("a.jsonl", b'{"a": 1}\n', "application/jsonl"),
        ("a.json", b"no json", "text/plain"),
        ("a.txt", "é".encode("utf-16"), "text/plain"),
        ("a.txt", "\ufeffé".encode(), "text/plain"),
        ("a.txt", "Un café crème".encode("utf-16-le"), "text/plain"),
        ("a.txt", "Un café crème".encode("utf-32-be"), "text/plain"),
        ("a.txt", "Кофе со сливками\n".encode("utf-16-be"), "text/plain"),
        ("a.txt", b"\0" * 4_000, "application/octet-stream"),
        ("a.txt", b"\0\1\0\2" * 400, "application/octet-stream"),
        ("a.txt", "Un café crème".encode("cp1252"), "text/plain"),
        ("a.txt", b"text" * 40_000 + b"\0", "application/octet-stream"),
        ("a.txt", bytes(range(256)) * 4, "application/octet-stream"),
        ("a.pdf", b"", "application/pdf"),
        ("a.xyz", b"", "application/x-empty"),
        ("a.doc", corpus.OLE_WORD, "application/msword"),
        ("a.docx", corpus.OLE_ENCRYPTED, corpus.DOCX),
    ],
)
def test_sniff(tmp_path: Path, filename: str, data: bytes, mime_type: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(data)
    assert sniff(path, filename) == mime_type


def test_a_zip_with_a_huge_directory_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(corpus.archive({f"word/document.xml{'x' * 200}{i}": b"" for i in range(20_000)}))
    assert sniff(path, "a.docx") == "application/zip"


def test_hostile_files_never_raise(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    for name, _, data in corpus.mutations():
        path.write_bytes(data)
        assert "/" in sniff(path, f"{name}.docx")


def test_the_contract_lists_what_is_accepted() -> None:
    assert corpus.DOCX in ACCEPTED["raw_doc"]
    assert "application/json" not in ACCEPTED["raw_doc"]
    assert "text/csv" in ACCEPTED["dataset_upload"]
