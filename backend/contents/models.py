"""Contents (files, pages, videos) and the chunks that are cut from their text."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.kit.models import Record


class Content(Record):
    __tablename__ = "contents"
    __table_args__ = (Index("ix_contents_project_id_id", "project_id", "id"),)

    project_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("projects.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(20))  # raw_doc or dataset_upload
    type: Mapped[str] = mapped_column(
        String(20)
    )  # pdf, docx, markdown, text, website, youtube, audio, json, jsonl, csv
    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(Text)
    mime_type: Mapped[str] = mapped_column(String(120))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    url: Mapped[str | None] = mapped_column(Text)  # of a website or video
    status: Mapped[str] = mapped_column(String(20), default="ready")  # pending, processing, ready, error
    error_code: Mapped[str | None] = mapped_column(String(60))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_context: Mapped[dict[str, Any] | None] = mapped_column(JSONB)  # the fields of the sentence
    # The job that fetches or transcribes it.
    job_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("jobs.id", ondelete="SET NULL"))
    # Of a page: its title. Of speech: duration_seconds, and where the text came from.
    meta: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default="{}")
    # What extraction found: the text lives in storage beside the file.
    page_count: Mapped[int | None] = mapped_column(Integer)
    character_count: Mapped[int] = mapped_column(BigInteger, default=0)
    language: Mapped[str | None] = mapped_column(String(8))  # ISO 639-1, detected
    # What the rows of a dataset_upload are for: examples, or reference (an evaluation set to stay clear of).
    purpose: Mapped[str] = mapped_column(String(12), default="examples", server_default="examples")
    # Of a dataset_upload: its shape, how many rows are good, and the first bad ones with line and reason.
    import_report: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    file_key: Mapped[str] = mapped_column(String(500))
    # The extracted text of a document, or the normalised rows of a dataset_upload (JSON lines).
    text_key: Mapped[str | None] = mapped_column(String(500))


class Chunk(Record):
    __tablename__ = "chunks"
    __table_args__ = (
        UniqueConstraint("content_id", "chunk_index"),
        Index("ix_chunks_project_id_content_id_chunk_index", "project_id", "content_id", "chunk_index"),
    )

    project_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("projects.id", ondelete="CASCADE"))
    content_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("contents.id", ondelete="CASCADE"))
    chunk_index: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)
    token_count: Mapped[int] = mapped_column(Integer)
    meta: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
