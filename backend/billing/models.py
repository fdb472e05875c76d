"""The ledger's table: it only ever grows."""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, String, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.kit.models import Record


class LedgerEntry(Record):
    """One fact: `characters` is negative for what was used. A trigger refuses UPDATE and DELETE.

    It names its user without a foreign key, because it outlives the account.
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (
        UniqueConstraint("kind", "reference"),
        CheckConstraint("characters <> 0", name="not_nothing"),
        Index("ix_ledger_entries_user_id_id", "user_id", "id"),
    )

    user_id: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(String(30))
    reference: Mapped[str] = mapped_column(String(200))
    characters: Mapped[int] = mapped_column(BigInteger)
    params: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
