"""Who a request acts for: what every owner-scoped query takes."""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Owner:
    """A user, by both of its names."""

    id: int
    public_id: UUID
