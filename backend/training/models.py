"""Fine-tunings, the files that they leave, and what the workers' hardware can do."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.kit.models import Base, Record


class FineTuning(Record):
    __tablename__ = "fine_tunings"
    __table_args__ = (
        Index("ix_fine_tunings_project_id_id", "project_id", "id"),
        Index("ix_fine_tunings_next_poll_at", "next_poll_at", postgresql_where=text("next_poll_at IS NOT NULL")),
    )

    project_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("projects.id", ondelete="CASCADE"))
    dataset_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("datasets.id", ondelete="CASCADE"), index=True)
    # The frozen version of the dataset that it trains on.
    dataset_version: Mapped[int | None] = mapped_column(Integer)
    job_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("jobs.id", ondelete="SET NULL"), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str | None] = mapped_column(Text)
    provider: Mapped[str] = mapped_column(String(30), default="local")
    method: Mapped[str] = mapped_column(String(20))  # lora, qlora; supervised at a provider
    model: Mapped[str] = mapped_column(String(300))
    # queued, preparing, training, completed, cancelled, error
    status: Mapped[str] = mapped_column(String(20), default="queued")
    progress: Mapped[float] = mapped_column(Float, default=0.0)
    hyperparameters: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    # Of a local run: what was forecast, on what machine, and what it took, see admission.py and api/run_memory.py.
    memory: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default="{}")
    external_id: Mapped[str | None] = mapped_column(String(300))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(String(60))
    error_context: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    # What its launch put in front of every example, and so belongs in front of every question as well.
    system_prompt: Mapped[str | None] = mapped_column(Text)
    # Of a provider's job: what it last said of itself, when to ask again, and how often asking failed in a row.
    provider_state: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default="{}")
    submitted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    next_poll_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    poll_failures: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    cancel_requested_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    retrained_from_id: Mapped[int | None] = mapped_column(
        BigInteger, ForeignKey("fine_tunings.id", ondelete="SET NULL")
    )
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    completed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Artifact(Record):
    """A file of a finished fine-tuning. `adapter` files come from training; `export` files from the export job."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("fine_tuning_id", "role", "filename"),)

    fine_tuning_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("fine_tunings.id", ondelete="CASCADE"))
    role: Mapped[str] = mapped_column(String(20))
    filename: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    file_key: Mapped[str] = mapped_column(String(500))


class HardwareReport(Base):
    """What one gpu worker says of its machine; the API answers from here and never imports torch."""

    __tablename__ = "hardware_reports"

    worker: Mapped[str] = mapped_column(String(200), primary_key=True)
    report: Mapped[dict[str, Any]] = mapped_column(JSONB)
    reported_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
