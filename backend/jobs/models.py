"""The jobs table, and the ticks that keep periodic work from running twice."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Float, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.kit.models import Base, Record

_LIVE = text("state IN ('queued', 'running')")


class Job(Record):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_live", "state", "dispatched_at", postgresql_where=_LIVE),
        # Whose turn it is in a queue, and what it took lately.
        Index("ix_jobs_queue_started_at", "queue", "started_at", postgresql_where=text("started_at IS NOT NULL")),
        Index("ix_jobs_turns", "queue", "user_id", postgresql_where=_LIVE),
        Index("ix_jobs_project_id_id", "project_id", "id"),
        Index("ix_jobs_user_id_id", "user_id", "id"),
        Index("uq_jobs_exclusive_key_live", "exclusive_key", unique=True, postgresql_where=_LIVE),
    )

    user_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id", ondelete="CASCADE"))
    project_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("projects.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(50))
    queue: Mapped[str] = mapped_column(String(20))
    params: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    # Its user's share of a queue that takes turns: twice the weight, twice the time.
    weight: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    # At most so many of its user's jobs run in its queue at once; None is without limit.
    max_concurrent: Mapped[int | None] = mapped_column(Integer)
    # At most one live job has a given key; a second one is a 409.
    exclusive_key: Mapped[str | None] = mapped_column(String(200))

    state: Mapped[str] = mapped_column(String(20), default="queued")
    progress_pct: Mapped[float] = mapped_column(Float, default=0.0)
    message: Mapped[str] = mapped_column(Text, default="")
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error_code: Mapped[str | None] = mapped_column(String(60))
    error_message: Mapped[str | None] = mapped_column(Text)
    # The fields of that sentence, so that it can be told in the reader's language.
    error_context: Mapped[dict[str, Any] | None] = mapped_column(JSONB)

    # Every claim raises the fence, and every write of a worker names the fence that it holds.
    fence: Mapped[int] = mapped_column(Integer, default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    # When its message was last sent, how often, and from when on it may be sent again.
    dispatched_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    dispatches: Mapped[int] = mapped_column(Integer, default=0)
    available_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Tick(Base):
    """One run of a periodic task: its slot is the time divided by the period."""

    __tablename__ = "ticks"

    task: Mapped[str] = mapped_column(String(50), primary_key=True)
    slot: Mapped[int] = mapped_column(BigInteger, primary_key=True)
