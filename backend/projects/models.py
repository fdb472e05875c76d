"""The projects table."""

from typing import Any

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, String, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.kit.models import Record


class Project(Record):
    __tablename__ = "projects"
    __table_args__ = (Index("ix_projects_user_id_id", "user_id", "id"),)

    user_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str | None] = mapped_column(Text)
    task_type: Mapped[str] = mapped_column(String(30), default="qa")
    # The stage of the studio's pipeline; the platform shows active or archived.
    stage: Mapped[str] = mapped_column(String(20), default="draft")
    is_archived: Mapped[bool] = mapped_column(Boolean, default=False, server_default="false")
    base_model_id: Mapped[str | None] = mapped_column(String(300))
    # What model/resolve found out; the exact revision is kept here.
    model_info: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    config: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
