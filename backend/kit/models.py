"""The declarative base, and the record that every table row is."""

from datetime import datetime
from uuid import UUID

import uuid_utils.compat
from sqlalchemy import BigInteger, DateTime, Identity, MetaData, Uuid, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class Record(Base):
    """A row with two names: `id` for the platform face and for joins, `public_id` (uuid7) for the studio face."""

    __abstract__ = True
    # What somebody else deleted a moment before is gone all the same; it needs no warning.
    __mapper_args__ = {"confirm_deleted_rows": False}  # noqa: RUF012  (SQLAlchemy's own protocol)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True, sort_order=-2)
    public_id: Mapped[UUID] = mapped_column(Uuid, unique=True, default=uuid_utils.compat.uuid7, sort_order=-1)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.clock_timestamp(), sort_order=98
    )
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True),
        server_default=func.clock_timestamp(),
        onupdate=func.clock_timestamp(),
        sort_order=99,
    )
