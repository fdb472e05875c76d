"""Datasets, their examples, and the marks that say which chunks are already paid for."""

from typing import Any

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.kit.models import Record


class Dataset(Record):
    __tablename__ = "datasets"
    __table_args__ = (Index("ix_datasets_project_id_id", "project_id", "id"),)

    project_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(20), default="processing")  # processing, ready, error
    # The model that wrote the examples.
    model: Mapped[str | None] = mapped_column(String(300))


class Example(Record):
    __tablename__ = "examples"
    __table_args__ = (
        Index("ix_examples_dataset_id_split_id", "dataset_id", "split", "id"),
        Index("ix_examples_dataset_id_fingerprint", "dataset_id", "fingerprint"),
    )

    dataset_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("datasets.id", ondelete="CASCADE"))
    chunk_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("chunks.id", ondelete="SET NULL"), index=True)
    split: Mapped[str] = mapped_column(String(10))  # preview, train, eval
    instruction: Mapped[str] = mapped_column(Text)
    input: Mapped[str] = mapped_column(Text, default="")
    output: Mapped[str] = mapped_column(Text)
    is_valid: Mapped[bool] = mapped_column(Boolean, default=True)
    invalid_reason: Mapped[str | None] = mapped_column(String(60))
    token_count: Mapped[int] = mapped_column(Integer)
    # SHA-256 of the normalised question and answer: the second one of a dataset is marked as a duplicate.
    fingerprint: Mapped[str] = mapped_column(String(64))
    meta: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)


class ChunkMark(Record):
    """A chunk whose examples are committed for one generation job: it is never asked for again."""

    __tablename__ = "chunk_marks"
    __table_args__ = (UniqueConstraint("job_id", "chunk_id"),)

    job_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"))
    chunk_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("chunks.id", ondelete="CASCADE"), index=True)
    prompt_tokens: Mapped[int] = mapped_column(Integer, default=0)
    completion_tokens: Mapped[int] = mapped_column(Integer, default=0)
