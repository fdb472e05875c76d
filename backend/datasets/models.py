"""Datasets with their versions and examples, and the marks that say which chunks are already paid for."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.kit.models import Base, Record


class Dataset(Record):
    __tablename__ = "datasets"
    __table_args__ = (Index("ix_datasets_project_id_id", "project_id", "id"),)

    project_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(20), default="processing")  # processing, ready, error
    # The model that wrote the examples.
    model: Mapped[str | None] = mapped_column(String(300))
    # The open version: what is written now belongs to it. Freezing makes it a DatasetVersion and opens the next.
    version: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    # Grows with every statement that touches the examples (by a trigger), so that `stats` can be kept until then.
    revision: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    stats: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    stats_revision: Mapped[int | None] = mapped_column(BigInteger)
    # What the last generation found: leakage, shortfall, languages, decontamination.
    report: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default="{}")


class DatasetVersion(Record):
    """A frozen state of a dataset's valid train and eval examples. `sha256` is over their exact texts, in order."""

    __tablename__ = "dataset_versions"
    __table_args__ = (UniqueConstraint("dataset_id", "number"),)

    dataset_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("datasets.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(String(64))
    train_count: Mapped[int] = mapped_column(Integer)
    eval_count: Mapped[int] = mapped_column(Integer)
    note: Mapped[str | None] = mapped_column(Text)


class Example(Record):
    __tablename__ = "examples"
    __table_args__ = (
        Index("ix_examples_dataset_id_id", "dataset_id", "id"),
        Index("ix_examples_dataset_id_split_id", "dataset_id", "split", "id"),
        Index("ix_examples_dataset_id_fingerprint", "dataset_id", "fingerprint"),
        Index("ix_examples_refused", "dataset_id", "id", postgresql_where=text("NOT is_valid")),
    )

    dataset_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("datasets.id", ondelete="CASCADE"))
    chunk_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("chunks.id", ondelete="SET NULL"), index=True)
    # The document that it was made from, or the uploaded file that it was imported from.
    content_id: Mapped[int | None] = mapped_column(
        BigInteger, ForeignKey("contents.id", ondelete="SET NULL"), index=True
    )
    source: Mapped[str] = mapped_column(String(12), default="generated", server_default="generated")  # imported, manual
    # The first version of the dataset that holds the row as it is; a trigger sets it.
    from_version: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    split: Mapped[str] = mapped_column(String(10))  # preview, train, eval
    instruction: Mapped[str] = mapped_column(Text)
    input: Mapped[str] = mapped_column(Text, default="")
    output: Mapped[str] = mapped_column(Text)
    # An answer that is worse than `output`, for training on preferences.
    rejected: Mapped[str | None] = mapped_column(Text)
    # The turns before the instruction, as [{role, content}], system prompt included; None for a single turn.
    history: Mapped[list[dict[str, str]] | None] = mapped_column(JSONB(none_as_null=True))
    is_valid: Mapped[bool] = mapped_column(Boolean, default=True)
    invalid_reason: Mapped[str | None] = mapped_column(String(60))
    token_count: Mapped[int] = mapped_column(Integer)
    # SHA-256 of the normalised question and answer (or answers): the second one of a dataset is marked as a duplicate.
    fingerprint: Mapped[str] = mapped_column(String(64))
    meta: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    # What it was before the first edit, None while unedited: {instruction, input, output, rejected, is_valid,
    # invalid_reason, token_count}.
    original: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    edited_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class RetiredExample(Base):
    """What an example was in frozen versions before it changed or went; only a trigger writes here."""

    __tablename__ = "retired_examples"
    __table_args__ = (
        Index("ix_retired_examples_dataset_id_until_version", "dataset_id", "until_version"),
        Index("ix_retired_examples_dataset_id_example_id", "dataset_id", "example_id"),
    )

    example_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    from_version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    # The first version that no longer holds it.
    until_version: Mapped[int] = mapped_column(Integer)
    dataset_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("datasets.id", ondelete="CASCADE"))
    public_id: Mapped[UUID] = mapped_column(Uuid)
    content_id: Mapped[int | None] = mapped_column(BigInteger)
    source: Mapped[str] = mapped_column(String(12))
    split: Mapped[str] = mapped_column(String(10))
    instruction: Mapped[str] = mapped_column(Text)
    input: Mapped[str] = mapped_column(Text)
    output: Mapped[str] = mapped_column(Text)
    rejected: Mapped[str | None] = mapped_column(Text)
    history: Mapped[list[dict[str, str]] | None] = mapped_column(JSONB(none_as_null=True))
    is_valid: Mapped[bool] = mapped_column(Boolean)
    token_count: Mapped[int] = mapped_column(Integer)
    meta: Mapped[dict[str, Any]] = mapped_column(JSONB)


class ChunkMark(Record):
    """A chunk whose examples are committed for one round of one generation job: it is never asked for again."""

    __tablename__ = "chunk_marks"
    __table_args__ = (UniqueConstraint("job_id", "chunk_id", "round"),)

    job_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"))
    dataset_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("datasets.id", ondelete="CASCADE"), index=True)
    round: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    chunk_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("chunks.id", ondelete="CASCADE"), index=True)
    prompt_tokens: Mapped[int] = mapped_column(Integer, default=0)
    completion_tokens: Mapped[int] = mapped_column(Integer, default=0)
